"""Estimates, intervals and tests: numbers in, numbers out. Knows no study, no records, no pandas."""
