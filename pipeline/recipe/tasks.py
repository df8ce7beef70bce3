"""One task judged by likelihood, from a local file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_prep.recipe.section import Section

TaskName = Literal["lambada", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"]


class TaskConfig(Section):
    """Examples in the fields in which the task was published."""

    task: TaskName = Field(description="how an example is read and asked")
    path: str = Field(description="JSON lines of examples, plain, .gz or .xz")
    shots: int = Field(default=0, ge=0, description="answered examples in front of each prompt")
    shots_path: str | None = Field(
        default=None,
        description="file they are drawn from, never the tested example itself; null = path",
    )
    limit: int | None = Field(
        default=None, ge=1, description="examples judged, from the first on; null = all"
    )
