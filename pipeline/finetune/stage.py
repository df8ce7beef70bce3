"""The finetune stage: train a classifier from the export, judge it on held-out texts, keep both."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from safetensors.torch import save_model
from sklearn.metrics import f1_score
from torch.utils.data import DataLoader

from data_prep.errors import RecipeError
from data_prep.manifest import write_atomic
from pipeline.evaluate.accuracy import accuracy_interval, majority_accuracy
from pipeline.evaluate.model import LanguageModel
from pipeline.finetune.classifier import Classifier, fit, predict
from pipeline.finetune.texts import Batches, Texts, read_texts
from pipeline.recipe import Recipe
from pipeline.recipe.finetune import FinetuneConfig
from pipeline.run_folder import RunFolder, StageOutput

_BOOTSTRAP_SAMPLES = 1000


def finetune_model(recipe: Recipe) -> StageOutput:
    """Write metrics.json, model.safetensors and labels.json to the run's finetune folder.

    RecipeError when the recipe has no `finetune` section or the folder exists; DataError when there
    is no export or the labelled text is not what the section says.
    """
    started = time.monotonic()
    section = recipe.finetune
    if section is None:
        raise RecipeError("the recipe has no finetune: section: add one that names labelled text")
    folder = RunFolder(recipe.run_folder).root / "finetune"
    scratch = folder.with_name("finetune.tmp")
    for path in (folder, scratch):
        if path.exists():
            raise RecipeError(f"{path} exists, and nothing is overwritten: move it away")
    texts = read_texts(section, recipe.data.clean, recipe.run.seed)
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
    model = LanguageModel.load(recipe.export_folder, accelerator.device)
    classifier, metrics = _train(accelerator, model, texts, section, recipe.run.seed)
    metrics["seconds"] = round(time.monotonic() - started, 3)
    if accelerator.is_main_process:
        _write(scratch, folder, classifier, texts.names, metrics)
    accelerator.wait_for_everyone()
    return StageOutput([folder], {name: metrics[name] for name in ("texts", "accuracy", "seconds")})


def _train(
    accelerator: Accelerator, model: LanguageModel, texts: Texts, section: FinetuneConfig, seed: int
) -> tuple[Classifier, dict[str, Any]]:
    limit = section.max_tokens + model.framing.prefix
    ids = model.framing.encode(texts.texts, min(limit, model.position_limit or limit))

    def loader(members: np.ndarray, shuffle: bool) -> DataLoader:
        return DataLoader(
            [(ids[i], int(texts.labels[i])) for i in members],  # type: ignore[arg-type]
            batch_size=section.batch,
            shuffle=shuffle,
            generator=torch.Generator().manual_seed(seed) if shuffle else None,
            collate_fn=Batches(model.framing),
        )

    torch.manual_seed(seed)
    classifier = Classifier(model.model, len(texts.names), section.mode == "probe")
    prepared, loss = fit(
        accelerator, classifier, loader(texts.train, True), section.epochs, section.lr
    )
    found = predict(accelerator, prepared, loader(texts.test, False))
    expected = texts.labels[texts.test]
    metrics = {
        "mode": section.mode,
        "labels": texts.names,
        "texts": len(texts.texts),
        "train_texts": len(texts.train),
        "test_texts": len(texts.test),
        **accuracy_interval(found == expected, _BOOTSTRAP_SAMPLES, seed),
        "macro_f1": float(f1_score(expected, found, average="macro", zero_division=0)),
        "majority_accuracy": majority_accuracy(texts.labels, texts.test),
        "train_loss": loss,
    }
    return classifier, metrics


def _write(
    scratch: Path, folder: Path, classifier: Classifier, names: list[str], metrics: dict[str, Any]
) -> None:
    scratch.mkdir(parents=True)
    try:
        save_model(classifier, str(scratch / "model.safetensors"))
        for name, content in (("labels", names), ("metrics", metrics)):
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            write_atomic(scratch / f"{name}.json", text)
        os.rename(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
