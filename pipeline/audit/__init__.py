"""What an average hides: `python -m pipeline audit RUNS` reads an export part by part."""
