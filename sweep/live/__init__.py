"""What a run has in the store while it goes on, its leases and its heartbeat, and what can be known and removed from there."""
