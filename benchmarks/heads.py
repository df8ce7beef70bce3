"""Output heads side by side: forward and backward to the hidden states and the output matrix.

    python benchmarks/heads.py [--quick] [--json FILE] [--device cpu|cuda]

Peers, in the same run: `dense-ce`, `F.linear` and `F.cross_entropy`; adaptive and sampled softmax;
on a GPU also torch's, Liger's and Apple's fused losses where they are installed; `naive`, an SGD
step on the whole matrix, for the factored form; `all-reduce`, what data-parallel training of the
whole matrix moves. On a processor by two threads in fp32, on a GPU in bf16 with 16,384 tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.device import device_of, device_options, seconds, steady_seconds
from benchmarks.harness import Row, interleaved, report, row
from benchmarks.heads_cost import communication_rows, memory_rows, zipf_ids
from pipeline.clock import StepResult
from pipeline.heads.adaptive import AdaptiveHead
from pipeline.heads.factored import FactoredHead
from pipeline.heads.gram import GramHead
from pipeline.heads.library import LibrarySoftmaxHead
from pipeline.heads.sampled import SampledHead
from pipeline.heads.spherical import build_loss
from pipeline.protocols import Head

_THREADS = 2
_MICRO_BATCHES = 32
_MOST_LOGITS = 1 << 32  # of dense cross-entropy at once: 9 GB in bf16, and as much for its gradient
_CONSECUTIVE = 19  # factored steps from one look at the condition number to the next


class Batch:
    """A matrix, hidden states and Zipf targets; the matrix is one for all heads."""

    def __init__(self, outputs: int, width: int, tokens: int, device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        random = torch.Generator().manual_seed(0)
        self.device = device
        self.weight = torch.empty(outputs, width, device=device, dtype=dtype)
        self.weight.normal_(0, 0.02).requires_grad_()
        self.hidden = torch.randn(1, tokens, width, generator=random).to(device, dtype)
        self.hidden.requires_grad_()
        self.targets = zipf_ids(tokens, outputs, random).unsqueeze(0).to(device)
        self.weights = torch.ones(1, tokens, device=device)

    def head(self, head: Head) -> Callable[[], float]:
        """Milliseconds of a micro-batch under a head of ours."""
        head.bind(self.weight)
        head.to(self.weight.dtype)
        parameters = [p for p in head.parameters() if p is not self.weight]

        def run() -> None:
            head(self.hidden, self.targets, self.weights)[0].backward()
            if isinstance(head, GramHead):
                head.sums.clear()  # the step's own work is measured on its own
            self.forget(parameters)

        return lambda: self._milliseconds(run)

    def dense(self) -> float:
        """Milliseconds of a micro-batch of plain cross-entropy, in as few parts as memory holds."""
        tokens = max(1, _MOST_LOGITS // len(self.weight))

        def run() -> None:
            parts = zip(self.hidden[0].split(tokens), self.targets[0].split(tokens), strict=True)
            for hidden, targets in parts:
                logits = nn.functional.linear(hidden, self.weight)
                nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
            self.forget([])

        return self._milliseconds(run)

    def _milliseconds(self, run: Callable[[], None]) -> float:
        return 1000 * steady_seconds(self.device, run)

    def forget(self, parameters: list[nn.Parameter]) -> None:
        for tensor in (self.weight, self.hidden, *parameters):
            tensor.grad = None


def gram_rows(outputs: int, width: int, device: torch.device, rounds: int) -> Iterator[Row]:
    """The Gram head beside the others, for a micro-batch and for a step of 32."""
    tokens = 16384 if device.type == "cuda" else 1024
    batch = Batch(outputs, width, tokens, device)
    gram = GramHead(build_loss("taylor"), tokens)
    arms = {
        "gram": batch.head(gram),
        "dense-ce": batch.dense,
        "adaptive": batch.head(AdaptiveHead([outputs // 25, outputs // 5], 4.0)),
        "sampled": batch.head(SampledHead(2048, seed=0)),
    }
    if device.type == "cuda":
        arms |= _fused(batch)
    found = interleaved(arms, rounds)
    for peer in list(found)[1:]:
        yield row(f"head gram micro D={outputs} d={width}", f"ms for {tokens:,} tokens",
                  found["gram"], found[peer], peer, True)  # fmt: skip

    def once() -> float:
        gram.gram = None
        return 1000 * seconds(device, lambda: _once(gram, batch))

    def step() -> float:
        gram.gram = None

        def run() -> None:
            for _ in range(_MICRO_BATCHES):
                gram(batch.hidden, batch.targets, batch.weights)[0].backward()
            gram.sums.gradient(gram.weight.detach())

        found = seconds(device, run)
        gram.sums.clear()
        batch.forget([])
        return 1000 * found

    whole = interleaved({"step": step, "once": once}, 2)
    yield row(f"head gram step32 D={outputs} d={width}", "ms for 32 micro-batches",
              whole["step"], _MICRO_BATCHES * found["dense-ce"], "dense-ce", True)  # fmt: skip
    # A step pays once what does not depend on its tokens, and saves this much with each.
    saved = (found["dense-ce"] - found["gram"]) / tokens
    yield row(f"head gram break-even D={outputs} d={width}", "tokens a step from which it pays",
              whole["once"] / saved)  # fmt: skip


def _once(gram: GramHead, batch: Batch) -> None:
    """What a step costs whatever its tokens: Q before it and the gradient written out after it."""
    gram._form_gram()
    gram.sums.gradient(gram.weight.detach())


def _fused(batch: Batch) -> dict[str, Callable[[], float]]:
    arms = {}
    for library in ("torch", "liger", "cce"):
        try:
            arm = batch.head(LibrarySoftmaxHead(library))
            arm()
            arms[library] = arm
        except Exception as error:  # of a library, on a card that it may not know
            print(f"left out: {library} at D={len(batch.weight)}: {error}", file=sys.stderr)
    return arms


def factored_rows(
    outputs: int, width: int, examples: int, device: torch.device, steps: int
) -> Iterator[Row]:
    """A whole SGD step of the factored head beside one on the matrix itself."""
    random = torch.Generator().manual_seed(0)
    weight = torch.empty(outputs, width, device=device).normal_(0, 0.02)
    head = FactoredHead(build_loss("squared"), examples, lr_share=1.0)
    head.bind(nn.Parameter(weight.clone()))
    head.rate = 2e-3 / examples

    def batch() -> tuple[Tensor, Tensor]:
        h = torch.randn(1, examples, width, generator=random).clamp_min(0).to(device)
        ids = torch.randint(outputs, (1, examples), generator=random).to(device)
        return h.requires_grad_(), ids

    weights = torch.ones(1, examples, device=device)
    fixed = batch()

    def factored(h: Tensor, ids: Tensor) -> None:
        head(h, ids, weights)[0].backward()
        head.after_step(StepResult.APPLIED)

    def bare() -> float:
        head.factors.steps.fill_(1)  # between two looks at the condition number
        run = lambda: [factored(*fixed) for _ in range(_CONSECUTIVE)]  # noqa: E731
        return 1000 * seconds(device, run) / _CONSECUTIVE

    def naive() -> float:
        return 1000 * seconds(
            device, lambda: _naive_step(weight, fixed[0][0].detach(), fixed[1].view(-1, 1))
        )

    found = interleaved({"bare": bare, "naive": naive}, 3 if steps < 1000 else 9)
    case = f"head factored D={outputs} d={width}"
    yield row(case, f"ms a step of {examples}", found["bare"], found["naive"], "naive", True)
    head.factors.steps.fill_(0)
    batches = [batch() for _ in range(16)]
    whole = seconds(device, lambda: [factored(*batches[i % 16]) for i in range(steps)])
    yield row(f"{case} with stabilisation", f"ms a step of {examples}, mean of {steps:,}",
              1000 * whole / steps, found["naive"], "naive", True)  # fmt: skip


def _naive_step(weight: Tensor, h: Tensor, ids: Tensor, rate: float = 1e-5) -> None:
    """Squared error over all outputs: forward, both gradients, update."""
    d_o = h @ weight.t()
    d_o.scatter_add_(1, ids, -torch.ones_like(ids, dtype=h.dtype))
    d_o *= 2
    _ = d_o @ weight
    weight.addmm_(d_o.t(), h, alpha=-rate)


def main() -> None:
    """Run the cases of the device."""
    arguments = device_options(__doc__ or "").parse_args()
    device = device_of(arguments)
    torch.set_num_threads(_THREADS)
    rows: list[Row] = []
    sizes = [(50304, 768)]
    if not arguments.quick:
        sizes = [(d, w) for d in (8192, 50304, 262144, 793471) for w in (256, 768)]
        if device.type == "cuda":
            sizes = [(d, 768) for d in (50304, 262144, 1048576)]
    # First, in fresh memory: what it touches is small beside what the others leave behind.
    rows += factored_rows(793471, 300, 128, device, 200 if arguments.quick else 1000)
    for outputs, width in sizes:
        rounds = 2 if arguments.quick or outputs > 100_000 else 5
        rows += gram_rows(outputs, width, device, rounds)
    if device.type == "cpu":
        rows += memory_rows(50304, 768, 1024)
        rows += communication_rows(50304, 768, 16384 if not arguments.quick else 2048)
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
