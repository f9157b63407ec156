"""Training of any task: one jitted step, an optimiser, and the loop that joins them with checkpoints and metrics."""
