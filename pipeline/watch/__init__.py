"""The live page: runs and their curves while they train, in a browser on this machine."""

from pipeline.watch.server import watch

__all__ = ["watch"]
