"""Methods: what each rollout is trained by."""
