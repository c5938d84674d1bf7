"""Labelled texts in numbers: what is measured of each row, which rows repeat others, what goes with a label. No verdict."""
