"""Rollouts between their grading and their loss."""
