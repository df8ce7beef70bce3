"""What a run will take, told before it starts: `python -m pipeline plan RECIPE`."""

from pipeline.plan.cost import Machine
from pipeline.plan.page import plan

__all__ = ["Machine", "plan"]
