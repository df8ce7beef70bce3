"""The README of a fine-tuned classifier: what it tells apart, from what, and how well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.recipe.finetune import FinetuneConfig

_NAMES = {"accuracy": "accuracy", "f1": "F1", "macro_f1": "macro F1",
          "mcc": "Matthews correlation", "auroc": "AUROC"}  # fmt: skip


def classifier_card(section: FinetuneConfig, source: Path, metrics: dict[str, Any]) -> str:
    """Markdown with YAML front matter; every number is one of `metrics`."""
    own_code = (source / "modeling_mlstm.py").is_file()
    trust = ", trust_remote_code=True" if own_code else ""
    return f"""---
license: other
library_name: transformers
pipeline_tag: text-classification
metrics:
- accuracy
- f1
- matthews_correlation
- roc_auc
---

# Classifier: {" / ".join(metrics["labels"])}

A classifier of {len(metrics["labels"])} classes on the model of `{source.name}`, \
{"all weights" if metrics["mode"] == "full" else "only the layer on top"} trained.

- {metrics["train_texts"]:,} texts to learn from ({Path(section.train).name}), \
{metrics["validation_texts"]:,} that chose the best of {len(metrics["history"])} states, \
{metrics["test_texts"]:,} to judge by
- step {metrics["best_step"]:,} of {metrics["steps"]:,}, \
{section.max_tokens} tokens of a text at most

| on the test texts | value | 95 % interval |
| --- | ---: | --- |
{_rows(metrics)}
| accuracy of the most frequent class | {metrics["majority_accuracy"]:.4f} | |

The license follows from those of the model and of the labelled text; state it here before you
publish.

```python
from transformers import pipeline

classify = pipeline("text-classification", FOLDER{trust})
classify("A text.", truncation=True, max_length={section.max_tokens})
```
"""


def _rows(metrics: dict[str, Any]) -> str:
    rows = []
    for key, name in _NAMES.items():
        if metrics.get(key) is not None:
            low, high = metrics["intervals"][key]
            rows.append(f"| {name} | {metrics[key]:.4f} | {low:.4f} to {high:.4f} |")
    return "\n".join(rows)
