"""The graph of stages: what depends on what, what is done, what must run again."""
