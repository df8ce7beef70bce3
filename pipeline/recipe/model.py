"""The `model` section: which backbone, and its sizes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from data_prep.recipe.section import Section


class MLSTMConfig(Section):
    """Multiplicative LSTM over bytes (Krause et al. 2016; Radford 2017; Puri et al. 2018)."""

    kind: Literal["mlstm"]
    hidden: int = Field(ge=1, description="units of each layer")
    embedding: int = Field(default=64, ge=1, description="units of the byte embedding")
    layers: int = Field(default=1, ge=1, le=10_000, description="stacked layers")
    weight_norm: bool = Field(default=True, description="normalise the four recurrent matrices")
    forget_bias: float = Field(default=0.0, description="added to the initial forget-gate bias")


class TransformerConfig(Section):
    """Any causal language model of `transformers`, by its model type."""

    kind: Literal["transformer"]
    architecture: str = Field(default="gpt2", description="`model_type` in transformers")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="keys of that architecture's config class; vocabulary and special ids are set "
        "from the tokenizer",
    )
    zero_init_residual: bool = Field(
        default=False,
        description="every layer begins as the identity: its last matrices are zero (Goyal et al. "
        "2017 for large batches)",
    )


ModelConfig = Annotated[MLSTMConfig | TransformerConfig, Field(discriminator="kind")]
