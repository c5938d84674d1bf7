"""The step graph as data: steps, stages, fingerprints, records, the queue. Pure: no experiment, no Ray, no MLflow."""
