"""Likelihood ranking and feature extraction beside what others do, examples and texts per core.

    python benchmarks/ranking.py [--quick] [--json FILE] [--hellaswag FILE] [--lambada FILE]

Peers, in the same run and on the same model: `lm-eval`, the harness's own model class (`pip install
lm_eval`; its rows are left out without it), at the batch size of 8, 32 and 128 that is fastest for
it; `options alone`, ours without reading a context once; `batch loop`, texts in the order of the
file, 32 at a time, padded by the tokenizer; `text by text`. Tokenising is included everywhere.
Time is that of the processor, with one thread, so that other work on the machine counts for nobody.
Without files the examples are made of the embedded reviews. Models have random weights, which cost
as much as trained ones.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Row, interleaved, options, report, row
from benchmarks.reviews import review_rows
from data_prep.recipe.tokenizer import BpeTokenizerConfig
from data_prep.tokenizers import Tokenizer, train_tokenizer
from data_prep.tokenizers.byte import ByteTokenizer
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.tasks import scoring
from pipeline.evaluate.tasks.causal_lm import CausalLM
from pipeline.evaluate.tasks.examples import Example, read_examples
from pipeline.evaluate.tasks.requests import make_requests
from pipeline.models.mlstm.configuration_mlstm import MLSTMConfig
from pipeline.models.mlstm.modeling_mlstm import MLSTMForCausalLM

_THREADS = 1
_CPU = torch.device("cpu")
_LM_EVAL_BATCHES = (8, 32, 128)
_LOOP_ROWS = 32
_Arm = Callable[[], Any]


def main() -> None:
    """Run both models."""
    parser = options(__doc__ or "")
    parser.add_argument("--hellaswag", type=Path, metavar="FILE", help="JSON lines of the task")
    parser.add_argument("--lambada", type=Path, metavar="FILE", help="JSON lines of the task")
    arguments = parser.parse_args()
    torch.set_num_threads(_THREADS)
    logging.disable(logging.WARNING)
    texts = [review["reviewText"] for review in review_rows(None)]
    count, rounds = (24, 3) if arguments.quick else (200, 5)
    tasks = {
        "hellaswag": read_examples("hellaswag", arguments.hellaswag, count)
        if arguments.hellaswag else _endings(texts, count),
        "lambada": read_examples("lambada", arguments.lambada, count)
        if arguments.lambada else _last_words(texts, count),
    }  # fmt: skip
    rows: list[Row] = []
    for name, model, tokenizer in _models(texts):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(folder)
            judged = CausalLM.with_tokenizer(model, folder, _CPU)
        for task, examples in tasks.items():
            rows += _ranking(f"ranking {task} {name} cpu", judged, examples, rounds)
        rows += _features(f"features {name} cpu", model, tokenizer, judged, texts[:count], rounds)
    report(rows, arguments.json)


def _models(texts: list[str]) -> list[tuple[str, Any, Tokenizer]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    bpe = train_tokenizer(BpeTokenizerConfig(kind="bpe", vocab_size=8192), texts)
    config = GPT2Config(
        vocab_size=bpe.vocab_size, n_layer=4, n_embd=128, n_head=4, n_positions=1024,
        bos_token_id=bpe.end_id, eos_token_id=bpe.end_id,
    )  # fmt: skip
    recurrent = MLSTMConfig(vocab_size=256, hidden_size=256, embedding_size=64)
    return [
        ("4x128", GPT2LMHeadModel(config), bpe),
        ("mlstm H=256", MLSTMForCausalLM(recurrent), ByteTokenizer("\n ", " ")),
    ]


def _endings(texts: Sequence[str], count: int) -> list[Example]:
    """Beginnings of reviews, each with its own going on and that of three others."""
    words = [text.split() for text in texts]
    long = [own for own in words if len(own) >= 60]
    return [
        Example(
            (" ".join(long[i % len(long)][:40]),) * 4,
            tuple(" ".join(long[(i + k) % len(long)][40:60]) for k in range(4)),
            0,
        )
        for i in range(count)
    ]


def _last_words(texts: Sequence[str], count: int) -> list[Example]:
    long = [own for text in texts if len(own := text.split()) >= 76]
    return [
        Example((" ".join(long[i % len(long)][:75]),), (long[i % len(long)][75],), 0)
        for i in range(count)
    ]


def _ranking(case: str, model: CausalLM, examples: list[Example], rounds: int) -> list[Row]:
    before = [""] * len(examples)

    def ours() -> Any:
        return scoring.judge(model, make_requests(model, examples, before))[0]

    def alone() -> Any:
        return scoring.judge_alone(model, make_requests(model, examples, before))

    arms: dict[str, _Arm] = {"ours": ours}
    if len(examples[0].options) > 1 and not model.recurrent:
        arms["options alone"] = alone
    if importlib.util.find_spec("lm_eval"):
        found = {size: _lm_eval(model, examples, size) for size in _LM_EVAL_BATCHES}
        quickest = min(found, key=lambda size: _seconds(found[size]))
        print(f"{case}: lm-eval is fastest at a batch of {quickest}")
        arms["lm-eval"] = found[quickest]
        _agree(ours(), arms["lm-eval"]())
    else:
        print("lm_eval is not installed: its rows are left out (pip install lm_eval)")
    seconds = interleaved({k: lambda arm=arm: _seconds(arm) for k, arm in arms.items()}, rounds)
    rate = {name: len(examples) / found for name, found in seconds.items()}
    peers = [name for name in arms if name != "ours"]
    return [row(case, "examples/s per core", rate["ours"], rate[peer], peer) for peer in peers] or [
        row(case, "examples/s per core", rate["ours"])
    ]


def _lm_eval(model: CausalLM, examples: list[Example], batch: int) -> _Arm:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    # Bytes have no token that begins a text, and none is needed here.
    begin = {"prefix_token_id": 10} if model.recurrent else {}
    harness = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=batch,
                   device="cpu", **begin)  # fmt: skip
    requests = [
        Instance("loglikelihood", {}, (context, f" {option}"), number)
        for example in examples
        for number, (context, option) in enumerate(
            zip(example.contexts, example.options, strict=True)
        )
    ]
    return lambda: harness.loglikelihood(requests, disable_tqdm=True)


def _agree(ours: Any, theirs: Any) -> None:
    """The two arms must have found the same before their times are compared."""
    mine = np.concatenate([judgement.log_prob for judgement in ours])
    np.testing.assert_allclose(mine, [log_prob for log_prob, _ in theirs], rtol=1e-4, atol=1e-2)


def _features(
    case: str, model: Any, tokenizer: Tokenizer, judged: CausalLM, texts: list[str], rounds: int
) -> list[Row]:
    reader = LanguageModel(model, tokenizer, _CPU)
    peer = "text by text" if judged.recurrent else "batch loop"
    arms: dict[str, _Arm] = {
        "ours": lambda: reader.features(texts),
        peer: lambda: _text_by_text(reader, texts) if judged.recurrent
        else _batch_loop(judged, texts),
    }  # fmt: skip
    seconds = interleaved({k: lambda arm=arm: _seconds(arm) for k, arm in arms.items()}, rounds)
    rate = {name: len(texts) / found for name, found in seconds.items()}
    return [row(case, "texts/s per core", rate["ours"], rate[peer], peer)]


@torch.no_grad()
def _batch_loop(model: CausalLM, texts: list[str]) -> np.ndarray:
    """Means of the last hidden states, as a tutorial computes them."""
    tokenizer = model.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    found = []
    for at in range(0, len(texts), _LOOP_ROWS):
        inputs = tokenizer(texts[at : at + _LOOP_ROWS], padding=True, truncation=True,
                           max_length=model.position_limit, return_tensors="pt")  # fmt: skip
        hidden = model.model.base_model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        found.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(found).numpy()


@torch.no_grad()
def _text_by_text(reader: LanguageModel, texts: list[str]) -> np.ndarray:
    """The state after each text, as the published code of the sentiment neuron reads one."""
    ids = [
        torch.from_numpy(row.astype("int64")) for row in reader.tokenizer.encode_documents(texts)
    ]
    return np.stack([reader.model.hidden(row[None])[1][0, -1, 0].numpy() for row in ids])


def _seconds(arm: _Arm) -> float:
    began = time.process_time()
    arm()
    return time.process_time() - began


if __name__ == "__main__":
    main()
