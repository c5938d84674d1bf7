"""MLflow's database or server as an index of the store: how it is named, whether it can be used, how it is mended."""
