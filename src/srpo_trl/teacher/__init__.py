"""The teacher: its weights, its prompts and its passes."""
