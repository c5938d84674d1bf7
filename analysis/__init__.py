"""From the records of a study to its frame, tables, figure and report. Imports neither Ray nor torch."""
