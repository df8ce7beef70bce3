"""The recipe as people will read it: every key with its unit and the reason for its value."""

from __future__ import annotations

import glob
import re
from pathlib import Path

import yaml

from pipeline.init.look import Found
from pipeline.init.machine import Machine
from pipeline.init.size import MAX_EPOCHS, Plan

_RECIPE = """\
# Language model of {file}, written by `python -m pipeline init`.
# Machine: {machine}.
# Aim: about {minutes:g} minutes of training. Expected: {expected},
# {parameters:,} parameters, {epochs:.1f} passes over about {training_bytes:,} bytes of text.
# `python -m pipeline keys` explains every key there is; those left out have good defaults.

run:
  name: {name}  # results go to the folder of this name in runs/
  steps: {steps}  # optimizer updates: what the time allows, {max_epochs} passes at most
  seed: 0  # of weights and data order; another seed shows how much is chance
  log_every_steps: {log_every}  # steps between two lines of metrics

data:
  folder: {folder}  # where the tokenized text goes; runs can share it
  sources:
    - kind: {kind}  # format of the file
      # file or glob, relative to where the command is run
      path: {path}
{source}
  split:
    validation: {share}  # share of documents for evaluation while training, 0 to 1
    test: {share}  # share of documents for the final evaluation, 0 to 1
  reset_documents: 1  # documents between resets of a recurrent state; others ignore it
  seed: 0  # of the order of documents

{tokenizer}

{model}

batch:
  global_batch: {global_batch}  # windows per optimizer step, over all devices
  micro_batch: {micro_batch}  # windows a device takes at once; halve it when memory runs out
  window_tokens: {window}  # tokens per window: how far the model looks back while learning

optim:
  lr: {lr}  # peak learning rate; smaller models take larger ones
  betas: [0.9, 0.95]  # Adam's averaging rates; 0.95 recovers sooner from a bad batch
  weight_decay: 0.1  # of matrices, per unit of learning rate; against overfitting
  warmup_steps: {warmup}  # steps of linear ramp; the first gradients are the wildest
  decay: cosine  # shape of the fall from the peak
  final_lr_share: 0.1  # share of the peak left at the end, 0 to 1
  gradient_clip_norm: 1.0  # gradients longer than this are shortened to it

precision:
  dtype: auto  # bf16 on a GPU that has it, else fp32

engine:
  zero_stage: 0  # 0 to 3; what DeepSpeed shards over devices, for models that do not fit on one

checkpoint:
  every_steps: {save_every}  # steps between saves: what an interruption can cost at most
  keep_last: 2  # newest checkpoints kept

eval:
  every_steps: {eval_every}  # steps between evaluations; about twenty points per curve
  max_tokens: {eval_tokens}  # tokens read per evaluation, so that it takes little of the time
  # beginnings from the text that the model goes on with
  prompts: {prompts}
  sample_tokens: {sample_tokens}  # tokens written per prompt

report:
  # headline of the report
  title: {title}
"""

_TRANSFORMER = """\
tokenizer:
  kind: bpe  # byte pairs learned from the text: a token is a word or a part of one
  vocab_size: {vocabulary}  # tokens; more text can fill a larger vocabulary

model:
  kind: transformer  # the usual choice; learns fast, sees one window at a time
  architecture: gpt2  # model_type in transformers
  config:
    n_embd: {width}  # units per token, the width
    n_layer: {layers}  # layers, the depth
    n_head: {heads}  # attention heads; divides the width
    resid_pdrop: 0.0  # dropout, 0 to 1; few passes over the text need none
    embd_pdrop: 0.0  # the same for the embedding
    attn_pdrop: 0.0  # the same for attention"""

_MLSTM = """\
tokenizer:
  kind: bytes  # the recurrent model reads bytes

model:
  kind: mlstm  # multiplicative LSTM; its state makes good features for sentiment
  hidden: {width}  # units of the state
  embedding: 64  # units of the byte embedding; bytes need no more
  layers: {layers}  # stacked layers; one wide layer works best"""

_SOURCE_COMMENTS = {
    "text_field": "field that holds the text; the others are {others}",
    "delimiter": "character between columns",
    "document": "what one document is: line, paragraph or file",
}


def recipe_text(source: Path, found: Found, machine: Machine, plan: Plan, minutes: float) -> str:
    """The YAML text."""
    body = _TRANSFORMER if plan.kind == "transformer" else _MLSTM
    shape = {
        "width": plan.width, "layers": plan.layers, "heads": plan.heads,
        "vocabulary": plan.vocabulary,
    }  # fmt: skip
    tokenizer, model = body.format(**shape).split("\n\n")
    name = _name(source)
    return _RECIPE.format(
        file=_comment(source.name), machine=machine.describe(), minutes=minutes,
        expected=plan.duration, parameters=plan.parameters, epochs=plan.epochs,
        training_bytes=found.training_bytes, name=_scalar(name), folder=_scalar(f"prepared/{name}"),
        steps=plan.steps, max_epochs=MAX_EPOCHS, log_every=max(1, plan.steps // 500),
        kind=found.source["kind"],
        path=_scalar(glob.escape(str(source))), source=_source(found), share=found.held_out_share,
        tokenizer=tokenizer, model=model, global_batch=plan.global_batch,
        micro_batch=min(plan.global_batch, 16), window=plan.window, lr=plan.lr,
        warmup=min(200, plan.steps // 20), save_every=max(1, plan.steps // 5),
        eval_every=max(1, plan.steps // 20),
        eval_tokens=64 * 1024, prompts=f"[{', '.join(map(_scalar, found.prompts))}]",
        sample_tokens=200 if plan.kind == "mlstm" else 80, title=_scalar(source.name),
    )  # fmt: skip


def _source(found: Found) -> str:
    """The keys of the source entry after its path."""
    others = _comment(", ".join(found.others) or "none")
    lines = []
    for key, value in found.source.items():
        if key in _SOURCE_COMMENTS:
            comment = _SOURCE_COMMENTS[key].format(others=others)
            lines += [f"      # {comment}", f"      {key}: {_scalar(value)}"]
    return "\n".join(lines)


def _name(source: Path) -> str:
    """A run name from the file's name up to its first dot."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.name.split(".")[0]).strip("-_")
    return name or "text"


def _scalar(value: str) -> str:
    """A string as YAML in one line, quoted whatever it holds."""
    return yaml.dump(value, default_style='"', allow_unicode=True, width=10**9).strip()


def _comment(text: str) -> str:
    """Text that cannot leave its comment."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
