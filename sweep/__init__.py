"""From an experiment to finished artifacts: grid, identity, store, scheduling, tracking, command line."""
