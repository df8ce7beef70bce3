"""The code that travels beside a model of our own architecture, for those who do not have ours."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.export import scored
from pipeline.models import mlstm

_MLSTM_FILES = (
    "cell.py",
    "window.py",
    "window_cpu.py",
    "products.py",
    "window_gpu.py",
    "kernels.py",
    "graphs.py",
    "configuration_mlstm.py",
    "modeling_mlstm.py",
    "modeling_mlstm_classifier.py",
)
MLSTM_AUTO_MAP = {
    "AutoConfig": "configuration_mlstm.MLSTMConfig",
    "AutoModelForCausalLM": "modeling_mlstm.MLSTMForCausalLM",
    "AutoModelForSequenceClassification": (
        "modeling_mlstm_classifier.MLSTMForSequenceClassification"
    ),
}
CLASSIFIER_AUTO_MAP = {
    key: value for key, value in MLSTM_AUTO_MAP.items() if key != "AutoModelForCausalLM"
}
SCORED_AUTO_MAP = {
    "AutoConfig": "configuration_scored.ScoredConfig",
    "AutoModelForCausalLM": "modeling_scored.ScoredForCausalLM",
}
_SCORED_FILES = ("configuration_scored.py", "modeling_scored.py")


def write_mlstm_code(folder: Path) -> None:
    """The files of the mLSTM as language model and as classifier."""
    for name in _MLSTM_FILES:
        shutil.copyfile(Path(mlstm.__file__).with_name(name), folder / name)


def write_scored_code(folder: Path) -> None:
    """The files of a model whose head is no plain softmax."""
    for name in _SCORED_FILES:
        shutil.copyfile(Path(scored.__file__).with_name(name), folder / name)
