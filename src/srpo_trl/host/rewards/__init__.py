"""Reward functions: what they are called with, where they run, what becomes of their results."""
