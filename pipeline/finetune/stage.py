"""The finetune stage: train a classifier, judge its best state on the test texts, keep both.

    python -m pipeline finetune RECIPE
    accelerate launch --num_processes 4 -m pipeline finetune RECIPE
    accelerate launch --config_file FILE -m pipeline finetune RECIPE      FILE may ask for DeepSpeed

What is kept is a folder that `AutoModelForSequenceClassification` loads. The test texts are judged
by the model as that folder gives it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForSequenceClassification

from data_prep.errors import RecipeError
from data_prep.manifest import sha256_file, write_atomic
from pipeline.evaluate.pooling import position_limit
from pipeline.export.code import CLASSIFIER_AUTO_MAP, write_mlstm_code
from pipeline.finetune.batches import Encoded, class_weights, encode
from pipeline.finetune.card import classifier_card
from pipeline.finetune.metrics import summary
from pipeline.finetune.model import (
    Classifier,
    load_classifier,
    load_text_tokenizer,
    padding_id,
)
from pipeline.finetune.processes import start_accelerator
from pipeline.finetune.progress import Keeper, Progress, check_settings
from pipeline.finetune.texts import Part, Texts, read_texts
from pipeline.finetune.training import CLIP_NORM, Training, fit, probabilities
from pipeline.models.mlstm.configuration_mlstm import MLSTMConfig
from pipeline.ranks import from_rank0
from pipeline.recipe import Recipe
from pipeline.recipe.finetune import FinetuneConfig
from pipeline.run_folder import StageOutput
from pipeline.train.stop import StopRequest

_NO_IDENTITY = {"model", "folder", "train", "validation", "test", "bootstrap_samples"}


def finetune_model(recipe: Recipe) -> StageOutput:
    """Fine-tune as the recipe's section says; RecipeError when there is none."""
    section = recipe.finetuning
    if section is None:
        raise RecipeError("the recipe has no finetune: section: add one that names labelled text")
    return finetune(section)


def finetune(section: FinetuneConfig) -> StageOutput:
    """Train, judge and write `section.folder`; `model` and `folder` are set. Collective.

    Goes on where an earlier start of the same was stopped or killed, and gives what stands when it
    was finished. RecipeError when the folder is of other settings; DataError when the model or the
    labelled text is not what the section says; StoppedAndSaved when a stop was asked for.
    """
    started = time.monotonic()
    assert section.model is not None and section.folder is not None
    folder, source = Path(section.folder), Path(section.model)
    texts = read_texts(section)
    settings = _settings(section, source, texts)
    accelerator = start_accelerator()
    if folder.exists():
        check_settings(folder, folder / "metrics.json", settings)
    else:
        loaded = load_classifier(source, texts.names, section.seed or 0)
        training, keeper = _prepare(accelerator, section, loaded, texts, settings)
        stop_file = folder.with_name("STOP")
        stop = StopRequest(stop_file, None)
        try:
            progress = fit(training, keeper, stop)
        finally:
            stop.release()
            if accelerator.is_main_process:
                stop_file.unlink(missing_ok=True)
        best = keeper.best(progress)
        metrics = _judge(accelerator, section, best, loaded, texts)
        metrics |= _course(training, progress) | {"settings": settings}
        metrics["seconds"] = round(time.monotonic() - started, 3)
        from_rank0(lambda: _finish(folder, best, section, metrics))
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return StageOutput([folder], {k: metrics[k] for k in ("texts", "accuracy", "seconds")})


def _settings(section: FinetuneConfig, source: Path, texts: Texts) -> dict[str, Any]:
    """What must be the same for a start to go on from where another was."""
    content = hashlib.sha256()
    for part in (texts.train, texts.validation, texts.test):
        content.update(json.dumps([part.texts, part.labels.tolist()]).encode())
    weights = [path for path in sorted(source.glob("*")) if path.suffix in (".safetensors", ".bin")]
    model = hashlib.sha256("".join(map(sha256_file, weights)).encode())
    return {
        **section.model_dump(mode="json", exclude=_NO_IDENTITY),
        "weights_sha256": model.hexdigest(),
        "texts_sha256": content.hexdigest(),
    }


def _prepare(
    accelerator: Accelerator,
    section: FinetuneConfig,
    loaded: Classifier,
    texts: Texts,
    settings: dict[str, Any],
) -> tuple[Training, Keeper]:
    """Model and optimizer as `accelerate` is configured to train them. Collective."""
    world = accelerator.num_processes
    if section.batch % world:
        raise RecipeError(
            f"finetune.batch={section.batch} does not divide into {world} processes: change one"
        )
    model = loaded.model
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # keys and values of texts that are read once
    if section.mode == "probe":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in loaded.fresh)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=section.lr)
    _configure_deepspeed(accelerator, section.batch // world)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    most = min(section.max_tokens, position_limit(model.config) or section.max_tokens)
    try:
        weights = class_weights(section.class_weights, texts.train.labels, texts.names)
    except KeyError as error:
        raise RecipeError(
            f"finetune.class_weights names no weight for {', '.join(error.args)}: give every class "
            "one, by its name in finetune.label_names where that has one"
        ) from None
    training = Training(
        accelerator, prepared, optimizer, _encoded(loaded, texts.train, most),
        _encoded(loaded, texts.validation, most), weights, padding_id(loaded.tokenizer), section,
    )  # fmt: skip
    assert section.folder is not None
    folder = Path(section.folder)
    return training, Keeper(folder.with_name(folder.name + ".tmp"), settings, accelerator, prepared)


def _configure_deepspeed(accelerator: Accelerator, rows: int) -> None:
    """What `accelerate` would take from a loader, and the clipping that DeepSpeed does itself."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None:
        return
    if accelerator.gradient_accumulation_steps != 1:
        raise RecipeError(
            "gradient_accumulation_steps of the accelerate configuration is "
            f"{accelerator.gradient_accumulation_steps}: set it to 1, finetune.batch is the batch"
        )
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = rows
    plugin.deepspeed_config["gradient_clipping"] = CLIP_NORM


def _encoded(loaded: Classifier, part: Part, most: int) -> Encoded:
    return Encoded(encode(loaded.tokenizer, part.texts, most), part.labels)


def _judge(
    accelerator: Accelerator,
    section: FinetuneConfig,
    best: Path,
    loaded: Classifier,
    texts: Texts,
) -> dict[str, Any]:
    """The test texts, by the model that the best folder holds. Collective."""
    model = AutoModelForSequenceClassification.from_pretrained(
        best, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    model = model.to(accelerator.device)
    most = min(section.max_tokens, position_limit(model.config) or section.max_tokens)
    ids = encode(loaded.tokenizer, texts.test.texts, most)
    found = probabilities(accelerator, model, ids, padding_id(loaded.tokenizer))
    labels = texts.test.labels
    majority = np.bincount(texts.train.labels, minlength=len(texts.names)).argmax()
    sizes = {
        f"{name}_texts": len(part.texts)
        for name, part in zip(("train", "validation", "test"), texts[:3], strict=True)
    }
    return {
        "mode": section.mode,
        "labels": texts.names,
        "texts": sum(sizes.values()),
        **sizes,
        "skipped_rows": texts.skipped,
        **summary(found, labels, section.bootstrap_samples, section.seed or 0),
        "majority_accuracy": float(np.mean(labels == majority)),
    }


def _course(training: Training, progress: Progress) -> dict[str, Any]:
    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        f"validation_{training.section.metric}": progress.best,
        "stopped_early": progress.early,
        "train_loss": progress.history[-1]["train_loss"],
        "history": progress.history,
    }


def _finish(folder: Path, best: Path, section: FinetuneConfig, metrics: dict[str, Any]) -> None:
    """Tokenizer, code, card and numbers beside the best weights; then the folder gets its name."""
    source = Path(section.model or "")
    load_text_tokenizer(source).save_pretrained(best)
    config = AutoConfig.from_pretrained(best, trust_remote_code=False)
    if isinstance(config, MLSTMConfig):
        config.auto_map = dict(CLASSIFIER_AUTO_MAP)
        write_mlstm_code(best)
        config.save_pretrained(best)
    (best / "README.md").write_text(classifier_card(section, source, metrics), encoding="utf-8")
    write_atomic(best / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    os.rename(best, folder)
    shutil.rmtree(folder.with_name(folder.name + ".tmp"))
