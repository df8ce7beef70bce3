"""The `report` section."""

from __future__ import annotations

from pydantic import Field

from data_prep.recipe.section import Section


class ReportConfig(Section):
    """What the report is called and how dense its curves are."""

    title: str | None = Field(default=None, description="headline; null = the run's name")
    max_points: int = Field(default=2000, ge=10, description="points drawn per curve at most")
