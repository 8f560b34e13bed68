"""What the commands of `srpo-trl` share, and `srpo-trl train`."""
