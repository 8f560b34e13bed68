"""What a run leaves behind, and how it is read: the one place that knows the names of its files."""
