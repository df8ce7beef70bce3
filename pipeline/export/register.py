"""Our own architectures, made known to the `Auto` classes of this process.

Their exports bring their code along for others. The project itself never runs code found in a model
folder: with the classes registered, `from_pretrained` uses the installed ones.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.export.scored.configuration_scored import ScoredConfig
from pipeline.export.scored.modeling_scored import ScoredForCausalLM
from pipeline.models.mlstm.configuration_mlstm import MLSTMConfig
from pipeline.models.mlstm.modeling_mlstm import MLSTMForCausalLM
from pipeline.models.mlstm.modeling_mlstm_classifier import MLSTMForSequenceClassification


def register_models() -> None:
    """Register the mLSTM, its classifier and the scored model; again changes nothing."""
    AutoConfig.register(MLSTMConfig.model_type, MLSTMConfig, exist_ok=True)
    AutoModelForCausalLM.register(MLSTMConfig, MLSTMForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(
        MLSTMConfig, MLSTMForSequenceClassification, exist_ok=True
    )
    AutoConfig.register(ScoredConfig.model_type, ScoredConfig, exist_ok=True)
    AutoModelForCausalLM.register(ScoredConfig, ScoredForCausalLM, exist_ok=True)
