"""A study's report: its sections, figures, tables and texts. What is true is decided in `analysis.study`."""
