"""What would fail, found out before it does: of this machine and its packages, a study's inputs, addresses on the network."""
