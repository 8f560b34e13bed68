"""What can be wrong with options, arguments and data, found before a model is loaded."""
