"""From the records of a study to its frame, tables, figures and report. Neither Ray nor torch.

Files that lie here are words and pages for every room."""
