"""The audit of anyone's labelled pairs, from file to page. Knows no study and no record."""
