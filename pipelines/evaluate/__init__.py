"""A task model's answers on test sets, and their scores. What several task models show together is for `analysis`."""
