"""Frames, tables, verdicts, figures and the report of a study, read from its records. Imports neither Ray nor torch."""
