"""`srpo-trl plan`: memory of a training run, from its configs alone."""
