"""The results of a study as it was evaluated: frames, items, tables, the paper's numbers. No verdicts, figures or pages."""
