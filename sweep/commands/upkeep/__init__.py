"""Commands that look after a store and its machines: how far a study is, what is whole, what may go, what would fail."""
