"""What goes on beside a worker's work: a notice of its end, its own watchdog, what it prints, what its libraries
would report. Nothing here knows the work."""
