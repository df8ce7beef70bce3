"""The whole recipe: sections composed and checked against each other.

    recipe = load_recipe("recipes/demo_mlstm.yaml", ["run.steps=20"])
    recipe.run_folder, recipe.accumulation(world_size=2)

`data_prep` owns the `data` and `tokenizer` sections and the strict loader; the rest is here, one
section a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import Field, model_validator

from data_prep.errors import RecipeError
from data_prep.recipe.data import DataConfig
from data_prep.recipe.loader import read_tree, validate
from data_prep.recipe.section import Section
from data_prep.recipe.tokenizer import TokenizerConfig
from pipeline.recipe.batch import BatchConfig
from pipeline.recipe.checkpoint import CheckpointConfig
from pipeline.recipe.engine import EngineConfig
from pipeline.recipe.evaluation import EvalConfig
from pipeline.recipe.export import ExportConfig
from pipeline.recipe.finetune import FinetuneConfig, FinetuneRecipe
from pipeline.recipe.grid import GridConfig
from pipeline.recipe.head import HeadConfig, PhasedHeadConfig, SoftmaxHeadConfig
from pipeline.recipe.model import MLSTMConfig, ModelConfig
from pipeline.recipe.optim import OptimConfig
from pipeline.recipe.precision import PrecisionConfig
from pipeline.recipe.report import ReportConfig
from pipeline.recipe.run import RunConfig
from pipeline.recipe.sparsity import DenseConfig, MixedConfig, SparsityConfig
from pipeline.recipe.watch import WatchConfig

# Heads that leave all gradients to autograd; the others write their own once a step.
_REDUCED_BY_AUTOGRAD = ("softmax", "sampled", "adaptive")


class Recipe(Section):
    """One run, from raw text to report."""

    run: RunConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    head: HeadConfig = Field(default_factory=SoftmaxHeadConfig)
    sparsity: SparsityConfig = Field(default_factory=DenseConfig)
    batch: BatchConfig
    optim: OptimConfig
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    watch: WatchConfig = Field(default_factory=WatchConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    finetune: FinetuneConfig | None = None
    report: ReportConfig = Field(default_factory=ReportConfig)

    @model_validator(mode="after")
    def _head_fits(self) -> Recipe:
        if self.recurrent and self.head.kind in ("gram", "factored", "adaptive", "phased"):
            raise ValueError(
                f"head.kind={self.head.kind} with model.kind=mlstm: an mLSTM is exported with a "
                "plain softmax, so choose head.kind softmax or sampled"
            )
        return self

    @model_validator(mode="after")
    def _has_somewhere_to_go_back_to(self) -> Recipe:
        if self.watch.rolls_back and not self.checkpoint.every_steps:
            raise ValueError(
                "watch.nonfinite or watch.spike is rollback, and checkpoint.every_steps is 0, so "
                "that every rollback would lead to the first step: set checkpoint.every_steps"
            )
        return self

    @property
    def run_folder(self) -> Path:
        return Path(self.run.folder) / self.run.name

    @property
    def export_folder(self) -> Path:
        return Path(self.export.folder) if self.export.folder else self.run_folder / "export"

    @property
    def finetuning(self) -> FinetuneConfig | None:
        """The `finetune` section with what it leaves to the rest of the recipe filled in."""
        section = self.finetune
        if section is None:
            return None
        given = {
            "model": section.model or str(self.export_folder),
            "folder": section.folder or str(self.run_folder / "finetune"),
            "clean": section.clean or self.data.clean,
            "seed": self.run.seed if section.seed is None else section.seed,
        }
        return section.model_copy(update=given)

    @property
    def recurrent(self) -> bool:
        """Recurrent models read lanes and carry a state; the others read shuffled windows."""
        return isinstance(self.model, MLSTMConfig)

    def evaluation_files(self) -> dict[str, Path]:
        """The files of texts to judge by that come after training, by the key that names them."""
        found = {f"eval.texts.{name}": Path(path) for name, path in self.eval.texts.items()}
        if self.eval.sentiment:
            found["eval.sentiment.path"] = Path(self.eval.sentiment.path)
        for name, section in self.eval.transfer.items():
            for key in ("train", "validation", "test"):
                if path := getattr(section, key):
                    found[f"eval.transfer.{name}.{key}"] = Path(path)
        for name, passages in self.eval.last_word.items():
            found[f"eval.last_word.{name}.path"] = Path(passages.path)
        for number, task in enumerate(self.eval.tasks):
            for key in ("path", "shots_path"):
                if path := getattr(task, key):
                    found[f"eval.tasks.{number}.{key}"] = Path(path)
        return found

    def check_evaluation_files(self) -> int:
        """How many files and folders the stages after training read; RecipeError for one that is
        not there."""
        files, labelled = self.evaluation_files(), {}
        if self.finetune is not None:
            labelled = {f"finetune.{k}": path for k, path in self.finetune.data_files.items()}
        for key, path in (files | labelled).items():
            if not (path.exists() if key in labelled else path.is_file()):
                raise RecipeError(f"{key}: {path} does not exist (seen from {Path.cwd()})")
        return len(files) + len(labelled)

    def accumulation(self, world_size: int) -> int:
        """Micro-batches a device takes per optimizer step; RecipeError when it has a rest."""
        share = self.batch.micro_batch * world_size
        sizes = [("batch.global_batch", self.batch.global_batch)]
        sizes += [("a batch of batch.ramp", size) for _, size in self.batch.ramp]
        for key, size in sizes:
            if size % share:
                raise RecipeError(
                    f"{key}={size} does not divide into {world_size} devices x "
                    f"batch.micro_batch={self.batch.micro_batch}: "
                    "change one of them or the number of devices"
                )
        return self.batch.global_batch // share

    def to_yaml(self) -> str:
        """The resolved recipe, every key written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe. RecipeError names every problem found."""
    tree = read_tree(path, overrides)
    if "grid" in tree:
        raise RecipeError(
            f"{path} is a study (it has a grid: section): use `python -m pipeline run` on it"
        )
    recipe: Recipe = validate(Recipe, tree, "")
    _cross_check(recipe)
    _check_engine(recipe)
    _check_sam(recipe)
    return recipe


def load_finetuning(path: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig | None:
    """The section of a recipe that holds a `finetune:` section and nothing else; None for another
    recipe. RecipeError names every problem found."""
    tree = read_tree(path, overrides)
    if set(tree) != {"finetune"}:
        return None
    return validate(FinetuneRecipe, tree, "").finetune


def load_grid(path: str | Path) -> GridConfig:
    """Read a file of `studies/`: a `grid:` section and nothing else."""
    tree = read_tree(path)
    if set(tree) != {"grid"}:
        found = ", ".join(sorted(set(tree) - {"grid"})) or "no grid: section"
        raise RecipeError(f"{path}: a study file holds one grid: section; found {found}")
    return validate(GridConfig, tree["grid"], "grid")


def _check_compile(recipe: Recipe) -> None:
    reasons = {
        "model.kind=mlstm: it has kernels of its own": recipe.recurrent,
        "sparsity.kind=mixed: masks change while it trains": isinstance(
            recipe.sparsity, MixedConfig
        ),
        "engine.zero_stage=3: weights are gathered layer by layer": recipe.engine.zero_stage == 3,
    }
    for reason, holds in reasons.items():
        if recipe.engine.compile and holds:
            raise RecipeError(f"engine.compile with {reason}; set engine.compile=false")


def _cross_check(recipe: Recipe) -> None:
    if recipe.batch.ramp and recipe.recurrent:
        raise RecipeError(
            "batch.ramp with model.kind=mlstm: every row of its batch is a lane that carries a "
            "state, and lanes cannot be added; remove batch.ramp"
        )
    if recipe.batch.ramp and isinstance(recipe.sparsity, MixedConfig):
        raise RecipeError(
            "batch.ramp with sparsity.kind=mixed: the plan's phases are shares of updates, whose "
            "tokens would differ; remove one of them"
        )
    _check_compile(recipe)
    _check_masked_head(recipe)
    stride = recipe.eval.stride_tokens
    if stride is not None and stride > recipe.batch.window_tokens:
        raise RecipeError(
            f"eval.stride_tokens={stride} is longer than batch.window_tokens="
            f"{recipe.batch.window_tokens}: the tokens between two windows would be left out"
        )
    warmup = recipe.optim.warmup_length(recipe.batch)
    if warmup >= recipe.run.steps and warmup:
        named = "steps" if recipe.optim.warmup_tokens is None else "tokens"
        told = f", {warmup} steps," if named == "tokens" else ""
        raise RecipeError(
            f"optim.warmup_{named}={getattr(recipe.optim, f'warmup_{named}')}{told} is not shorter "
            f"than run.steps={recipe.run.steps}: the run would end before the rate is reached"
        )
    if recipe.recurrent and recipe.tokenizer.kind != "bytes":
        raise RecipeError(
            f"model.kind=mlstm reads bytes, but tokenizer.kind={recipe.tokenizer.kind}: use bytes"
        )


def _check_masked_head(recipe: Recipe) -> None:
    if not (isinstance(recipe.sparsity, MixedConfig) and recipe.sparsity.mask_head):
        return
    phases = recipe.head.phases if isinstance(recipe.head, PhasedHeadConfig) else [recipe]
    if other := [phase.head.kind for phase in phases if phase.head.kind != "softmax"]:
        raise RecipeError(
            f"sparsity.mask_head with head.kind={other[0]}: only the gradient and the FLOPs of a "
            "softmax can be masked; set sparsity.mask_head=false, or head.kind=softmax"
        )


def _check_engine(recipe: Recipe) -> None:
    if recipe.engine.kind == "ddp" and recipe.precision.dtype == "fp16":
        raise RecipeError(
            "precision.dtype=fp16 with engine.kind=ddp: its loss scale would have to be known to "
            "hooks and heads, and bf16 needs none; use precision.dtype=bf16 or "
            "engine.kind=deepspeed"
        )
    if recipe.engine.comm_hook != "post_local_sgd":
        return
    for key, found, wanted in (
        ("head.kind", recipe.head.kind, _REDUCED_BY_AUTOGRAD),
        ("sparsity.kind", recipe.sparsity.kind, ("dense",)),
        ("optim.noise_every_steps", recipe.optim.noise_every_steps, (0,)),
    ):
        if found not in wanted:
            raise RecipeError(
                f"engine.comm_hook=post_local_sgd with {key}={found}: it needs the gradient of the "
                "whole batch, and each rank has its own there; use another hook, or set "
                f"{key}={wanted[0]}"
            )


def _check_sam(recipe: Recipe) -> None:
    if not recipe.optim.sam_rho:
        return
    if recipe.engine.kind != "ddp":
        raise RecipeError(
            f"optim.sam_rho={recipe.optim.sam_rho:g} with engine.kind={recipe.engine.kind}: it "
            "moves weights there and back between two passes over a batch, and DeepSpeed keeps "
            "copies and parts of them that change in its own step only; set engine.kind=ddp"
        )
    for key, found, wanted in (
        ("head.kind", recipe.head.kind, _REDUCED_BY_AUTOGRAD),  # others sum over the passes
        ("sparsity.kind", recipe.sparsity.kind, ("dense",)),  # a climb leaves the mask
        ("optim.noise_every_steps", recipe.optim.noise_every_steps, (0,)),
        ("engine.comm_hook", recipe.engine.comm_hook, ("none", "fp16", "bf16")),  # others remember
    ):
        if found not in wanted:
            raise RecipeError(
                f"optim.sam_rho={recipe.optim.sam_rho:g} with {key}={found}: it does not bear a "
                f"second pass over the same batch; set {key}={wanted[0]}, or optim.sam_rho=0"
            )
