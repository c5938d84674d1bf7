"""Where examples come from: sources, downloads, the template corpus, training sets. No model and no GPU."""
