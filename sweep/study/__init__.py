"""Experiments, built in or a user's own, and the grid of steps that one makes. Nothing runs here."""
