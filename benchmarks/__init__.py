"""Beside the peers: what each stage, and what schedules them, takes. One command a benchmark; nothing here is installed."""
