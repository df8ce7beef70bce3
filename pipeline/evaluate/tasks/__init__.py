"""Tasks judged by likelihood: which of some endings a model finds the likeliest."""
