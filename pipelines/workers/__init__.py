"""What goes on beside a worker's work: lanes, notices, its watchdog, what it prints, what its libraries would report.
Nothing here knows the work."""
