"""Reconstruct reviews as bags of words: thousands of outputs, of which a review has a few dozen.

    python examples/bag_of_words.py                 two minutes on two cores, on the reviews beside

A review's words go through an embedding and a hidden layer and come out as word counts again. The
outputs are trained without ever being computed (`pipeline.heads.outputs`); only the judgement on
held-out reviews, how many of the ten likeliest words are the review's own, looks at all of them.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.heads.outputs import SparseOutputs  # noqa: E402

TEXTS = ROOT / "data_prep" / "sample" / "fine_foods_train.jsonl.xz"
WORDS_OF_A_REVIEW = 64
BATCH = 64


def main() -> None:
    """Train, and judge after every epoch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reviews", type=int, default=4000, help="how many to read")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=128, help="units of the hidden layer")
    options = parser.parse_args()
    torch.manual_seed(0)
    ids, counts, vocabulary = bags(options.reviews)
    train, held_out = slice(0, len(ids) * 9 // 10), slice(len(ids) * 9 // 10, None)
    encoder = Encoder(len(vocabulary), options.width)
    outputs = SparseOutputs(options.width, len(vocabulary))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *outputs.parameters()], lr=2e-3)
    print(f"{len(ids):,} reviews, {len(vocabulary):,} words")
    for epoch in range(options.epochs):
        began = time.perf_counter()
        order = torch.randperm(len(ids[train]))
        for some in order.split(BATCH):
            optimizer.zero_grad()
            hidden = encoder(ids[train][some], counts[train][some])
            outputs(hidden, ids[train][some], counts[train][some]).mean().backward()
            outputs.write_gradient()
            optimizer.step()
        hits = judge(encoder, outputs, ids[held_out], counts[held_out])
        seconds = time.perf_counter() - began
        print(
            f"epoch {epoch + 1:2d}  {seconds:5.1f} s  ten likeliest of its words: {hits:6.2%} hit"
        )


class Encoder(nn.Module):
    """Mean of the words' embeddings, a hidden layer."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, ids: Tensor, counts: Tensor) -> Tensor:
        shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
        return self.layers((self.embedding(ids) * shares.unsqueeze(-1)).sum(dim=1))


def bags(reviews: int) -> tuple[Tensor, Tensor, list[str]]:
    """Word ids and counts (N, WORDS_OF_A_REVIEW), padded with count 0, and the vocabulary."""
    with lzma.open(TEXTS, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["reviewText"].lower() for line in lines][:reviews]
    words = [Counter(re.findall(r"[a-z']+", text)) for text in texts]
    vocabulary = sorted({word for bag in words for word in bag})
    number = {word: i for i, word in enumerate(vocabulary)}
    ids = torch.zeros(len(words), WORDS_OF_A_REVIEW, dtype=torch.int64)
    counts = torch.zeros(len(words), WORDS_OF_A_REVIEW)
    for row, bag in enumerate(words):
        for column, (word, count) in enumerate(bag.most_common(WORDS_OF_A_REVIEW)):
            ids[row, column], counts[row, column] = number[word], count
    return ids, counts, vocabulary


@torch.no_grad()
def judge(encoder: Encoder, outputs: SparseOutputs, ids: Tensor, counts: Tensor) -> float:
    """Share of the ten largest outputs that are words of the review."""
    _, likeliest = outputs.topk(encoder(ids, counts), 10)
    own = (likeliest.unsqueeze(-1) == ids.unsqueeze(1)) & (counts > 0).unsqueeze(1)
    return float(own.any(dim=-1).float().mean())


if __name__ == "__main__":
    main()
