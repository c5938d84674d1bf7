"""What a worker looks at while it works: a notice of its end, and its own watchdog. Nothing here knows what is worked on."""
