"""Repairing a labelled set: rows dropped or relabelled, and weights that give heuristics the odds ratios asked for. Pure."""
