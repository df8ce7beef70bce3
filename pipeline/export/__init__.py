"""From a checkpoint to a folder that `transformers` loads."""
