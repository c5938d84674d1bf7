"""What is built from what: steps, stages, fingerprints, records and the queue. Pure: no experiment, no Ray, no MLflow."""
