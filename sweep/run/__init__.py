"""Running a study: Ray's session, Tune, trials, progress, MLflow's runs. The one room of `sweep` that imports Ray."""
