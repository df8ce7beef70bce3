"""What an average hides: `python -m pipeline audit RUNS` looks at an exported model part by part."""
