"""The learning study: what each method makes of one start, on four tasks of 0.2 million parameters."""
