"""Output layers: hidden states and targets in, loss out."""
