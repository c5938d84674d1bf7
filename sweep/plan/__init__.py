"""What a run would do and cost: cached steps, GPU-hours, money, wall time. Nothing runs here."""
