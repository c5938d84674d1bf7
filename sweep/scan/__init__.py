"""The audit's scan over the machines of a Ray cluster: tables in pieces, and copies that meet by their hashes."""
