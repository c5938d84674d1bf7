"""Studies that the project publishes: what the repository keeps of one, and the page that is made of that without its store."""
