"""Every method of the package on one task of the learning study."""
