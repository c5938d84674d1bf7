"""Tables of labelled texts as people keep them, read batch by batch: files, columns, values. Nothing of tasks, Ray or torch."""
