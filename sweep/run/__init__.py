"""Running a study: Ray's session, Tune, trials, progress, MLflow. The one room of `sweep` that imports Ray and MLflow."""
