"""What this package knows of the insides of TRL, transformers and the engines, checked at import."""
