"""MLflow as an index of the store: its database or server, and how measures, views, models, data sets and a study are shown.

What of a study is logged when is `sweep.run.tracking`'s."""
