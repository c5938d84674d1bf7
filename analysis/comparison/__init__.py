"""Two studies beside each other: paired differences where both have the same cell, and what of them cannot be compared."""
