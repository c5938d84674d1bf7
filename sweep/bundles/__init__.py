"""A study taken apart and put together: artifacts without weights, in files that can be checked and merged alone."""
