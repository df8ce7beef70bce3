"""Our own architectures, made known to the `Auto` classes of this process.

An exported mLSTM brings its code along for others. The project itself never runs code found in a
model folder: with the classes registered, `from_pretrained` uses the installed ones.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.models.mlstm.configuration_mlstm import MLSTMConfig
from pipeline.models.mlstm.modeling_mlstm import MLSTMForCausalLM


def register_models() -> None:
    """Register the mLSTM; calling it again changes nothing."""
    AutoConfig.register(MLSTMConfig.model_type, MLSTMConfig, exist_ok=True)
    AutoModelForCausalLM.register(MLSTMConfig, MLSTMForCausalLM, exist_ok=True)
