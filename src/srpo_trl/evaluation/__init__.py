"""Evaluation as the paper does it: n samples of each question at a temperature of their own, scored per question."""
