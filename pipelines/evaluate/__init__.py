"""A task model's answers on test sets, their scores, and judgements of a pool. What several show is for `analysis`."""
