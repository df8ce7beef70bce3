"""The `head` section: which output layer and loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_prep.recipe.section import Section


class SoftmaxHeadConfig(Section):
    """Full softmax with cross-entropy in fp32, computed in chunks of tokens."""

    kind: Literal["softmax"] = "softmax"
    chunk_tokens: int = Field(
        default=2048, ge=1, description="tokens whose logits exist at the same time"
    )


HeadConfig = Annotated[SoftmaxHeadConfig, Field()]
