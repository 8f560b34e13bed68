"""What a run leaves behind: scalars, rollouts, examples token by token, costs."""
