"""One trainer between TRL and the method, and the plain objects that it owns."""
