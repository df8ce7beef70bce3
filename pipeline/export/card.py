"""The README of an export: what the model is, what it read, how to load it."""

from __future__ import annotations

from typing import Any

from data_prep.shards import Prepared
from pipeline.recipe import Recipe


def model_card(
    recipe: Recipe,
    prepared: Prepared,
    trainer: dict[str, Any],
    parameters: int,
    own_code: bool,
) -> str:
    """Markdown with YAML front matter; counts come from the manifest and the checkpoint."""
    train = prepared.manifest["splits"]["train"]
    clock = trainer["clock"]
    tokens = clock["instances"] * recipe.batch.window_tokens
    name = "mlstm" if recipe.recurrent else recipe.model.architecture  # type: ignore[union-attr]
    trust = ", trust_remote_code=True" if own_code else ""
    return f"""---
license: other
library_name: transformers
pipeline_tag: text-generation
tags:
- {name}
- {prepared.manifest["tokenizer"]["kind"]}
---

# {recipe.run.name}

A causal language model ({name}, {parameters:,} parameters) over a vocabulary of
{prepared.vocab_size:,} ids.

- trained for {clock["applied"]:,} steps on {tokens:,} tokens
- training text: {train["documents"]:,} documents, {train["tokens"]:,} tokens,
  {train["bytes"]:,} bytes
- data fingerprint: `{trainer["data_fingerprint"]}`

The license of the weights follows from that of the training text; state it here before you publish.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER{trust})
tokenizer = AutoTokenizer.from_pretrained(FOLDER{trust})
```
"""
