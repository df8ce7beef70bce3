"""From a folder to a classifier and its tokenizer, both of `transformers`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    logging,
)

from data_prep.errors import DataError
from data_prep.tokenizers import CARD, load_tokenizer
from pipeline.export.folder import check_model_folder, check_vocabulary
from pipeline.export.register import register_models
from pipeline.export.scored.configuration_scored import ScoredConfig
from pipeline.models.mlstm.configuration_mlstm import MLSTMConfig


class Classifier(NamedTuple):
    """A sequence classifier; `fresh` are the names of the weights that its folder does not have,
    which is the layer on top."""

    model: Any
    tokenizer: Any
    fresh: frozenset[str]


def load_classifier(folder: Path, names: Sequence[str], seed: int) -> Classifier:
    """The model of a folder in fp32 with a seeded new layer for the classes called `names`.

    DataError when the folder is a checkpoint or no model, when `transformers` has no classifier of
    its architecture, or when the tokenizer has ids that the model does not know.
    """
    check_model_folder(folder)
    register_models()
    tokenizer = load_text_tokenizer(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    own = config.text_config if isinstance(config, ScoredConfig) else config
    if type(own) not in AutoModelForSequenceClassification._model_mapping.keys():
        raise DataError(
            f"{folder}: transformers has no sequence classifier of architecture {own.model_type}: "
            "name another model in finetune.model"
        )
    if (size := getattr(own, "vocab_size", None)) is not None:
        check_vocabulary(folder, size, len(tokenizer), exact=isinstance(own, MLSTMConfig))
    own.num_labels = len(names)
    own.id2label = dict(enumerate(names))
    own.label2id = {name: number for number, name in enumerate(names)}
    own.problem_type = "single_label_classification"
    own.pad_token_id = padding_id(tokenizer)
    torch.manual_seed(seed)
    with _quiet():
        if isinstance(config, ScoredConfig):
            model, fresh = _from_scored(folder, own)
        else:
            model, found = AutoModelForSequenceClassification.from_pretrained(
                folder, config=own, dtype=torch.float32, output_loading_info=True,
                use_safetensors=True, trust_remote_code=False,
            )  # fmt: skip
            fresh = found["missing_keys"]
    return Classifier(model, tokenizer, frozenset(fresh))


def load_text_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; that of an export frames texts as the model met them in training."""
    try:
        library = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "a model folder needs its tokenizer beside it"
        raise DataError(f"{folder}: no tokenizer can be loaded ({first}); {hint}") from None
    if library.pad_token is None and library.eos_token is not None:
        library.pad_token = library.eos_token
    library.padding_side = "right"
    if (folder / CARD).is_file():
        _frame(library, folder)
    return library


def _frame(library: Any, folder: Path) -> None:
    """Put before and after a text what training put there: for bytes plain text, else the id that
    ends a document, which is read before a text only."""
    ours = load_tokenizer(folder)
    before = ours.encode_prompt("").tolist()
    whole = ours.encode_documents(["a"])[0].tolist()
    inner = ours.encode_prompt("a").tolist()
    after = whole[len(inner) :] if ours.kind == "bytes" else []
    if library("a")["input_ids"] == inner + after:
        return
    symbols = library.convert_ids_to_tokens(before + after)
    template = [*symbols[: len(before)], "$A", *symbols[len(before) :]]
    known = sorted({*zip(symbols, before + after, strict=True)})
    library.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=known
    )


def padding_id(tokenizer: Any) -> int:
    """What fills rows up; 0 for a tokenizer of bytes, whose model goes by the mask alone."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _from_scored(folder: Path, own: Any) -> tuple[Any, set[str]]:
    """Under the scores of another head than softmax lies the architecture itself."""
    inner = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).model
    model = AutoModelForSequenceClassification.from_config(own)
    model.base_model.load_state_dict(inner.base_model.state_dict())
    names = {name for name, _ in model.named_parameters()}
    below = {f"{model.base_model_prefix}.{n}" for n, _ in model.base_model.named_parameters()}
    return model, names - below


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's list of weights that a new classifier cannot have."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
