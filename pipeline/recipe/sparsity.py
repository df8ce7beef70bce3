"""The `sparsity` section: dense training, until a plan says otherwise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_prep.recipe.section import Section


class DenseConfig(Section):
    """No sparsity."""

    kind: Literal["dense"] = "dense"


SparsityConfig = Annotated[DenseConfig, Field()]
