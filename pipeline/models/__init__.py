"""Backbones: inputs and state in, hidden states and state out."""
