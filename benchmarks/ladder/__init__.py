"""The parts of `benchmarks/large_batch.py`, one subject a file."""
