"""The stages of the study: each one frozen config and one function from input paths to an output folder.

Files that lie here belong to every room: errors, identity, resources, storage. What knows of grids, Tune, MLflow or the store
lives elsewhere."""
