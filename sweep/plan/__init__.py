"""The plan of a run: cached steps, GPU-hours, money, wall time. Nothing runs here."""
