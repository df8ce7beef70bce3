"""The export stage: a checkpoint becomes a folder of `transformers`, proved before it has a name.

The folder is built as `FOLDER.tmp`, loaded again the way a user would load it, and compared with
the trained module and its tokenizer. Only then it is renamed; a failure leaves nothing behind.
"""

from __future__ import annotations

import copy
import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from data_prep.errors import DataError, RecipeError
from data_prep.manifest import read_manifest, write_manifest
from data_prep.shards import Prepared
from data_prep.tokenizers import Tokenizer
from pipeline.clock import Clock
from pipeline.export.card import write_cards
from pipeline.export.code import (
    MLSTM_AUTO_MAP,
    SCORED_AUTO_MAP,
    write_mlstm_code,
    write_scored_code,
)
from pipeline.export.register import register_models
from pipeline.export.scored.configuration_scored import ScoredConfig
from pipeline.export.scored.modeling_scored import ScoredForCausalLM
from pipeline.export.weights import read_weights
from pipeline.heads.adaptive import AdaptiveHead
from pipeline.models.build import parameter_count
from pipeline.protocols import Head
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder, StageOutput
from pipeline.train.checkpoint import find_checkpoint
from pipeline.train.module import TrainModule, build_module
from pipeline.train.state import load_tensors, read_trainer

_PROBE_TOKENS = 512  # of the validation split, for the comparison with the trained module
_PROBE_TEXT = "It's a test: 12,345 déjà-vu 😀\n\n  It's   fine.\tEnd"


def export_model(recipe: Recipe) -> StageOutput:
    """Write the export folder of a run's checkpoint.

    RecipeError when the folder exists or there is no checkpoint; DataError when the checkpoint does
    not belong to this recipe and its prepared data, or when the export does not reproduce the
    trained model within `export.tolerance` (nats).
    """
    started = time.monotonic()
    folder = recipe.export_folder
    scratch = folder.with_name(folder.name + ".tmp")
    if recipe.run_folder.resolve() in scratch.resolve().parents and _is_abandoned(scratch):
        shutil.rmtree(scratch)
    for path in (folder, scratch):
        if path.exists():
            raise RecipeError(
                f"{path} exists, and nothing is overwritten: move it away or set export.folder"
            )
    checkpoint = find_checkpoint(RunFolder(recipe.run_folder).checkpoints, recipe.export.checkpoint)
    prepared = Prepared.open(recipe.data.folder)
    scratch.mkdir(parents=True)
    lock = os.open(scratch, os.O_RDONLY)  # held until it is closed, or this process dies
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        parameters, expected = _build(scratch, recipe, prepared, checkpoint)
        # The trained module is gone by now: two models at once are more memory than one needs.
        difference = _prove(scratch, expected, recipe, prepared)
        os.rename(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    counts = {
        "checkpoint": checkpoint.name,
        "parameters": parameters,
        "max_log_prob_difference": difference,
        "seconds": round(time.monotonic() - started, 3),
    }
    return StageOutput([folder], counts)


def _is_abandoned(scratch: Path) -> bool:
    """Whether an export was killed there, rather than is at work or has never been."""
    if not scratch.is_dir():
        return False
    folder = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(folder)
    return True


def load_trained(recipe: Recipe, prepared: Prepared, checkpoint: Path) -> TrainModule:
    """The trained module on the CPU in fp32 and eval mode; DataError when it does not fit."""
    trainer = read_trainer(checkpoint)
    found = trainer["tokenizer_fingerprint"]
    if found != prepared.tokenizer_fingerprint:
        raise DataError(
            f"{checkpoint} was trained with tokenizer {found[:12]}, {prepared.folder} holds "
            f"{prepared.tokenizer_fingerprint[:12]}: set data.folder to the data of the run"
        )
    weights = read_weights(checkpoint)
    module = build_module(recipe, prepared)
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        problems = f"{' '.join(str(error).split()):.400}"
        hint = "use the recipe of the run (its config.yaml)"
        raise DataError(f"{checkpoint} does not fit recipe.model: {problems}; {hint}") from None
    module.head.load_plugin_state(load_tensors(checkpoint / "plugins" / "head.safetensors"))
    module.head.settle()
    module.head.begin_step(Clock(**trainer["clock"]))
    return module.eval()


def _build(
    folder: Path, recipe: Recipe, prepared: Prepared, checkpoint: Path
) -> tuple[int, Tensor]:
    """Write the folder; gives the number of parameters and what the trained module says to the
    probe, log-probabilities (rows, tokens, vocabulary)."""
    module = load_trained(recipe, prepared, checkpoint)
    _write(folder, module, prepared, recipe.export.max_shard_size)
    parameters = parameter_count(module)
    write_cards(
        folder, recipe, prepared, read_trainer(checkpoint), parameters,
        own_code=module.backbone.recurrent or bool(module.head.export_settings()),
    )  # fmt: skip
    with torch.no_grad():
        hidden, _ = module.backbone(_probe_ids(prepared, recipe.batch.window_tokens), None, None)
        return parameters, module.head.log_prob(hidden)


def _write(folder: Path, module: TrainModule, prepared: Prepared, max_shard_size: str) -> None:
    """Model, code where it needs some, and tokenizer."""
    model: Any = module.backbone.causal_lm
    # The tokenizer decides how a document ends; None for bytes, whose framing is plain text.
    end = prepared.tokenizer().end_id
    model.config.bos_token_id = model.config.eos_token_id = end
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    if module.backbone.recurrent:
        model.config.auto_map = dict(MLSTM_AUTO_MAP)
        write_mlstm_code(folder)
    else:
        model.config.use_cache = True  # off while training, where it would only cost memory
    if settings := module.head.export_settings():
        model = _scored(folder, model, module.head, settings)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    _write_tokenizer(folder, prepared, module.backbone.recurrent)


def _scored(folder: Path, model: Any, head: Head, settings: dict[str, Any]) -> Any:
    """The model with its head's scores in the place of its logits, and the code for others."""
    # A copy: `transformers` changes the settings of a model that becomes a part of another.
    own = copy.deepcopy(model.config)
    config = ScoredConfig(own, **settings, auto_map=dict(SCORED_AUTO_MAP))
    config.bos_token_id = config.eos_token_id = model.config.eos_token_id
    whole = ScoredForCausalLM(config, model)
    whole.generation_config = model.generation_config
    if isinstance(head, AdaptiveHead):
        whole.adaptive = head.softmax
    write_scored_code(folder)
    return whole


def _write_tokenizer(folder: Path, prepared: Prepared, recurrent: bool) -> None:
    prepared.tokenizer().save(folder)  # its own files: what else lies beside them is not copied
    # So that model(**tokenizer(text)) works: `transformers` would hand over token types as well,
    # and a mask to a model that has none.
    config = read_manifest(folder / "tokenizer_config.json")
    config["model_input_names"] = ["input_ids"] + ([] if recurrent else ["attention_mask"])
    write_manifest(folder / "tokenizer_config.json", config)


def _prove(folder: Path, expected: Tensor, recipe: Recipe, prepared: Prepared) -> float:
    """The largest difference of log-probabilities in nats; DataError above the tolerance."""
    register_models()
    _prove_tokenizer(folder, prepared.tokenizer())
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
    with torch.no_grad():
        found = model(input_ids=_probe_ids(prepared, recipe.batch.window_tokens)).logits
    difference = log_prob_difference(found, expected)
    # Written so that a NaN is refused too.
    if not difference <= recipe.export.tolerance:
        raise DataError(
            f"the exported model's log-probabilities differ by {difference:g} nats from the "
            f"trained model's, export.tolerance is {recipe.export.tolerance:g}: nothing was written"
        )
    return difference


def log_prob_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of log-probabilities in nats, of two (rows, tokens, vocabulary) that
    each are known up to a constant of the token."""
    # In fp32 the sum over 200,000 words would be off by more than the models are. A few tokens at
    # a time: a large vocabulary's would be as large as a model.
    pairs = zip(*(values.flatten(0, 1).split(64) for values in (found, expected)), strict=True)
    differences = [
        (f.double().log_softmax(dim=-1) - e.double().log_softmax(dim=-1)).abs().max()
        for f, e in pairs
    ]
    return float(torch.stack(differences).max())


def _probe_ids(prepared: Prepared, window: int) -> Tensor:
    """(rows, tokens) from the start of the validation split, in windows as in training."""
    split = prepared.split("validation")
    ids = torch.from_numpy(split.read(0, min(split.tokens, _PROBE_TOKENS)).astype("int64"))
    window = min(window, len(ids))
    return ids[: len(ids) // window * window].view(-1, window)


def _prove_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    framing = len(tokenizer.encode_prompt(""))
    expected = tokenizer.encode_prompt(_PROBE_TEXT)[framing:].tolist()
    library = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    found = library(_PROBE_TEXT, add_special_tokens=False)["input_ids"]
    if found != expected:
        raise DataError(
            f"AutoTokenizer gives ids {found[:8]}... where the shards were made with "
            f"{expected[:8]}...: install the transformers version of requirements.txt"
        )
