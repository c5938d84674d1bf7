"""The results of a study: frames, items, claims, verdicts, power. No figures and no pages."""
