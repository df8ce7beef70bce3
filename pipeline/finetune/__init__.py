"""A classifier on labelled text, from an exported model."""
