"""What a study's results say: frames, items, claims, verdicts, power. No figures and no pages."""
