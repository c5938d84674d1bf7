"""Model and dataset cards in the hub's form: licences, lineage, figures and findings as text. Reads and writes no file."""
