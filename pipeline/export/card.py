"""The README of an export: what the model is, what it read and under which licences, how to load
it. The data card of the prepared text lies beside it, whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from data_prep.card import CARD_JSON, CARD_MARKDOWN
from data_prep.manifest import read_manifest
from data_prep.shards import Prepared
from pipeline.recipe import Recipe

DATA_CARD = "data_card.md"
# Those that the hub knows by these names; any other is "other", and named below.
_HUB_LICENCES = (
    "apache-2.0", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "mit", "odc-by", "pddl", "unlicense",
)  # fmt: skip


def write_cards(
    folder: Path,
    recipe: Recipe,
    prepared: Prepared,
    trainer: dict[str, Any],
    parameters: int,
    own_code: bool,
) -> None:
    """README.md and the data card into `folder`; DataError when the prepared text has none."""
    data = read_manifest(prepared.folder / CARD_JSON)
    card = _model_card(recipe, prepared, trainer, parameters, own_code, data["sources"])
    (folder / "README.md").write_text(card, encoding="utf-8")
    shutil.copyfile(prepared.folder / CARD_MARKDOWN, folder / DATA_CARD)


def hub_licence(licences: set[str]) -> str:
    """The one licence of all sources where the hub has a name for it, else `other`."""
    only = next(iter(licences)).lower() if len(licences) == 1 else ""
    return only if only in _HUB_LICENCES else "other"


def _model_card(
    recipe: Recipe,
    prepared: Prepared,
    trainer: dict[str, Any],
    parameters: int,
    own_code: bool,
    sources: list[dict[str, Any]],
) -> str:
    """Markdown with YAML front matter; counts come from the manifest and the checkpoint."""
    train = prepared.manifest["splits"]["train"]
    clock = trainer["clock"]
    tokens = clock["instances"] * recipe.batch.window_tokens
    name = "mlstm" if recipe.recurrent else recipe.model.architecture  # type: ignore[union-attr]
    trust = ", trust_remote_code=True" if own_code else ""
    licences = {source["licence"] for source in sources}
    return f"""---
license: {hub_licence(licences)}
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
  {train["bytes"]:,} bytes ([data card]({DATA_CARD}))
- data fingerprint: `{trainer["data_fingerprint"]}`

| training text | licence as stated |
| --- | --- |
{_listed(sources)}

The license of the weights follows from these; state it here before you publish.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER{trust})
tokenizer = AutoTokenizer.from_pretrained(FOLDER{trust})
```
"""


def _listed(sources: list[dict[str, Any]]) -> str:
    """A row for every source; names of files only, for a card that leaves this machine."""
    rows = []
    for source in sources:
        paths = [source["path"]] if isinstance(source["path"], str) else source["path"]
        what = source["origin"] or ", ".join(Path(path).name for path in paths)
        rows.append(f"| {what.replace('|', ' ')} | {source['licence'].replace('|', ' ')} |")
    return "\n".join(rows)
