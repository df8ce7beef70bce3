"""Training: engine, loop, checkpoints, monitoring."""
