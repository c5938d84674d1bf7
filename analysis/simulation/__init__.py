"""Studies whose truth is known, drawn at random or from real runs, and how often intervals and verdicts are right of them."""
