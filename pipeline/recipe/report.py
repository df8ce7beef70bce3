"""The `report` section."""

from __future__ import annotations

from pydantic import Field

from data_prep.recipe.section import Section


class ReportConfig(Section):
    """What the report is called and how dense its curves are."""

    title: str | None = Field(default=None, description="headline; null = the run's name")
    max_points: int = Field(default=2000, ge=10, description="points drawn per curve at most")
    device_hour_price: float | None = Field(
        default=None,
        gt=0,
        description="money for one device and hour, any currency; null = unknown",
    )
