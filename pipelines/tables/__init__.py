"""Tables of labelled texts as people keep them, read batch by batch: files, columns, values. No task is known here, and nothing
of Ray or torch.
"""
