"""What a study takes elsewhere: an artifact found by any name for it, folders of a hub, their upload. Trains nothing."""
