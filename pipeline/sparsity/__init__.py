"""Mixed Sparsity Training: a plan of phases, masks that evolve, and what makes them save time."""
