"""Every executor of a masked layer against the reference: dense products, masked afterwards.

Without a GPU the Triton kernels run in Triton's interpreter, which has to be chosen before it is
imported: `check_*` run in a process of their own.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from data_prep.errors import RecipeError
from pipeline.sparsity import choose as choosing
from pipeline.sparsity import kernels, linear
from pipeline.sparsity.choose import choose
from pipeline.sparsity.linear import SparseLinear, missing
from pipeline.sparsity.topology import spread
from tests.pipeline.interpreter import assert_near, run_checks

torch.set_num_threads(1)

MASKS = ["random", "empty rows and columns", "full", "empty", "one unit"]


def mask_of(kind: str, rows: int, columns: int) -> Tensor:
    random = torch.Generator().manual_seed(rows * 10 + columns)
    mask = torch.rand(rows, columns, generator=random) < 0.4
    if kind == "empty rows and columns":
        mask[0], mask[-1], mask[:, 1] = False, False, False
    elif kind in ("full", "empty"):
        mask[:] = kind == "full"
    elif kind == "one unit":
        mask[:] = False
        mask[rows // 2, columns - 1] = True
    return mask


def layer_of(
    kind: str, inputs: int, out: int, mask: Tensor, block: int, dtype: torch.dtype = torch.float64
) -> SparseLinear:
    """A layer whose weights are zero where its mask is off, dense so far."""
    torch.manual_seed(0)
    made: nn.Module = (
        Conv1D(out, inputs) if kind == "Conv1D" else nn.Linear(inputs, out, kind == "Linear")
    )
    layer = SparseLinear(made.to(dtype))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=inputs**-0.5)
        active = spread(mask, block)
        layer.weight.mul_(active.t() if layer.transposed else active)
    return layer


def through(layer: SparseLinear, x: Tensor, d_y: Tensor) -> dict[str, Tensor]:
    """The result and all gradients."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(d_y)
    assert x.grad is not None
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(layer.parameters()))
    return {"y": y.detach(), "x": x.grad, **gradients}


def assert_agrees(
    layer: SparseLinear, executor: str, mask: Tensor, block: int, x: Tensor, d_y: Tensor,
    tolerance: float = 1e-12,
) -> None:  # fmt: skip
    layer.set_mask(mask, block, "masked")
    wanted = through(layer, x, d_y)
    layer.set_mask(mask, block, executor)
    got = through(layer, x, d_y)
    assert_near(got, wanted, tolerance)
    active = spread(mask, block)
    assert (got["weight"][~(active.t() if layer.transposed else active)] == 0).all()


def test_the_reference_is_autograd_with_its_gradient_masked() -> None:
    for kind in ("Linear", "Conv1D"):
        mask = mask_of("random", 6, 4)
        layer = layer_of(kind, 8, 12, mask, 2)
        x, d_y = torch.randn(7, 8).double(), torch.randn(7, 12).double()
        wanted = through(layer, x, d_y)
        active = spread(mask, 2).t() if layer.transposed else spread(mask, 2)
        assert not (wanted["weight"][~active] == 0).any()
        wanted["weight"] *= active
        layer.set_mask(mask, 2, "masked")
        assert_near(through(layer, x, d_y), wanted, 1e-12)


@pytest.mark.parametrize("kind", ["Linear", "no bias", "Conv1D"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("executor", "block"), [("gather", 2), ("gather", 5), ("blocks", 2), ("blocks", 5), ("csr", 1)]
)
def test_it_agrees_with_the_reference(executor: str, block: int, mask: str, kind: str) -> None:
    units = mask_of(mask, 6, 4)
    layer = layer_of(kind, 4 * block, 6 * block, units, block)
    x, d_y = torch.randn(2, 7, 4 * block).double(), torch.randn(2, 7, 6 * block).double()
    assert_agrees(layer, executor, units, block, x, d_y)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize(
    ("executor", "block"), [("masked", 16), ("gather", 16), ("blocks", 16), ("csr", 1)]
)
def test_it_agrees_in_fp32(executor: str, block: int, kind: str) -> None:
    """Where the products are another library's."""
    units = mask_of("random", 160 // block, 96 // block)
    layer = layer_of(kind, 96, 160, units, block)
    x, d_y = torch.randn(33, 96), torch.randn(33, 160)
    layer.set_mask(units, block, "masked")
    wanted = through(layer, x.double(), d_y.double())
    layer.to(torch.float32).set_mask(units, block, executor)
    assert_near(through(layer, x, d_y), wanted, 5e-6)


@pytest.mark.parametrize("executor", ["masked", "gather"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_stays_near_full(
    dtype: torch.dtype, tolerance: float, executor: str
) -> None:
    units = mask_of("random", 6, 4)
    layer = layer_of("Linear", 32, 48, units, 8, dtype)
    x, d_y = torch.randn(9, 32).to(dtype), torch.randn(9, 48).to(dtype)
    layer.set_mask(units, 8, executor)
    got = through(layer, x, d_y)
    assert all(values.dtype == dtype for values in got.values())
    layer.double().set_mask(units, 8, "masked")
    assert_near(got, through(layer, x.double(), d_y.double()), tolerance)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize(
    ("executor", "block"), [("masked", 4), ("gather", 4), ("blocks", 4), ("csr", 1)]
)
@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.flatten(0, 1).t().contiguous().t().view(v.shape),  # features first
        lambda v: v.transpose(0, 1).contiguous().transpose(0, 1),
        lambda v: torch.cat([v, v], dim=-1)[..., : v.shape[-1]],
        lambda v: v[:1, :1, :1].expand_as(v),  # what a sum gives back
    ],
)
def test_activations_may_lie_at_any_stride(
    change: Callable[[Tensor], Tensor], executor: str, block: int, kind: str
) -> None:
    units = mask_of("random", 4, 6)
    layer = layer_of(kind, 6 * block, 4 * block, units, block)
    x, d_y = torch.randn(2, 3, 6 * block).double(), torch.randn(2, 3, 4 * block).double()
    layer.set_mask(units, block, "masked")
    wanted = through(layer, change(x).contiguous(), change(d_y).contiguous())
    layer.set_mask(units, block, executor)
    assert_near(through(layer, change(x), change(d_y)), wanted, 1e-12)


def test_two_layers_pass_what_they_make_on_to_each_other() -> None:
    for executor, block in (("gather", 4), ("blocks", 4), ("csr", 1)):
        first = mask_of("random", 16 // block, 8 // block)
        second = first.t().contiguous()
        layers = [layer_of("Conv1D", 8, 16, first, block), layer_of("Linear", 16, 8, second, block)]
        x, found = torch.randn(2, 5, 8).double(), []
        for name in ("masked", executor):
            for layer, mask in zip(layers, (first, second), strict=True):
                layer.zero_grad()
                layer.set_mask(mask, block, name)
            layers[1](nn.functional.gelu(layers[0](x))).square().sum().backward()
            found.append([p.grad for layer in layers for p in layer.parameters()])
        for got, wanted in zip(*found, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("executor", "block"), [("masked", 4), ("gather", 4), ("blocks", 4), ("csr", 1)]
)
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_the_whole_gradient_is_let_through_on_demand(kind: str, executor: str, block: int) -> None:
    units = mask_of("random", 12 // block, 8 // block)
    layer = layer_of(kind, 8, 12, units, block)
    x, d_y = torch.randn(5, 8).double(), torch.randn(5, 12).double()
    wanted = through(layer, x, d_y)
    layer.set_mask(units, block, executor)
    layer.dense_gradient = True
    assert_near(through(layer, x, d_y), wanted, 1e-12)
    layer.dense_gradient = False
    assert (through(layer, x, d_y)["weight"] == 0).sum() >= (~spread(units, block)).sum()


@pytest.mark.parametrize("kind", ["Linear", "no bias", "Conv1D"])
def test_without_a_mask_it_is_the_layer_it_replaces(kind: str) -> None:
    made: nn.Module = Conv1D(6, 4) if kind == "Conv1D" else nn.Linear(4, 6, kind == "Linear")
    layer, x = SparseLinear(made), torch.randn(2, 3, 4)
    assert layer.weight is made.weight and layer.bias is made.bias
    assert list(layer.state_dict()) == list(made.state_dict())
    torch.testing.assert_close(layer(x), made(x))
    layer.set_mask(torch.ones(6, 4, dtype=torch.bool), 1, "masked")
    layer.set_mask(None, 1, "masked")
    assert "dense" in repr(layer)
    torch.testing.assert_close(layer(x), made(x))


@pytest.mark.parametrize(
    ("executor", "block"), [("masked", 4), ("gather", 4), ("blocks", 4), ("csr", 1)]
)
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_backward_reads_the_parameter_again(kind: str, executor: str, block: int) -> None:
    """ZeRO-3 takes a parameter's data after forward and gives it other memory before backward."""
    units = mask_of("random", 8 // block, 8 // block)
    layer = layer_of(kind, 8, 8, units, block)
    x, d_y = torch.randn(5, 8).double().requires_grad_(), torch.randn(5, 8).double()
    layer.set_mask(units, block, executor)
    wanted = through(layer, x, d_y)
    layer.zero_grad()
    y, values = layer(x), layer.weight.data.clone()
    layer.weight.data = torch.empty(0, dtype=x.dtype)
    layer.weight.data = 2 * values
    y.backward(d_y)
    assert x.grad is not None and layer.weight.grad is not None
    torch.testing.assert_close(x.grad, 2 * wanted["x"])
    torch.testing.assert_close(layer.weight.grad, wanted["weight"])


REFUSED = [
    ("gather", 8, 5, torch.float32, "sparsity.block=5 does not divide a layer of 16 x 8"),
    ("nonsense", 8, 4, torch.float32, "one of dense, masked, gather, csr, triton, blocks"),
    ("gather", 8, 1, torch.float32, "needs sparsity.block above 1, found block 1"),
    ("blocks", 8, 1, torch.float32, "needs sparsity.block above 1, found block 1"),
    ("blocks", 8, 4, torch.bfloat16, "needs fp32, found block 4 of bfloat16"),
    ("csr", 8, 4, torch.float32, "needs sparsity.block=1, found block 4"),
    ("csr", 8, 1, torch.bfloat16, "needs fp32, found block 1 of bfloat16"),
    ("triton", 8, 4, torch.float32, "needs a GPU and sparsity.block a multiple of 16"),
    ("triton", 16, 16, torch.float64, "needs a GPU and fp32, bf16 or fp16, found"),
]


@pytest.mark.skipif(kernels.triton is None, reason="triton is not installed")
@pytest.mark.parametrize(("executor", "inputs", "block", "dtype", "message"), REFUSED)
def test_what_cannot_be_is_refused(
    executor: str, inputs: int, block: int, dtype: torch.dtype, message: str
) -> None:
    layer = SparseLinear(nn.Linear(inputs, 16, dtype=dtype))
    mask = torch.ones(16 // block, inputs // block, dtype=torch.bool)
    with pytest.raises(RecipeError) as refusal:
        layer.set_mask(mask, block, executor)
    assert message in str(refusal.value)


def test_masks_and_layers_of_another_kind_are_refused() -> None:
    layer = SparseLinear(Conv1D(16, 8))
    for mask in (torch.ones(2, 4, dtype=torch.bool), torch.ones(4, 2)):
        with pytest.raises(RecipeError, match=r"expected bool \(4, 2\)"):
            layer.set_mask(mask, 4, "gather")
    with pytest.raises(RecipeError, match="found a Conv1d"):
        SparseLinear(nn.Conv1d(1, 1, 1))


def test_the_fastest_is_chosen_and_nothing_is_changed_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seconds by the clock are not for tests: a slow executor is made slower than any noise."""

    class Slow(linear.Masked):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            for _ in range(300):
                super().forward(x, weight, bias)
            return super().forward(x, weight, bias)

    for kind in ("Linear", "no bias", "Conv1D"):
        units = mask_of("random", 4, 4)
        layer, random = layer_of(kind, 64, 64, units, 16, torch.float32), torch.get_rng_state()
        possible = {"masked", "gather", "blocks"}
        for fast in possible:
            with monkeypatch.context() as patch:
                for slow in possible - {fast}:
                    patch.setitem(choosing.EXECUTORS, slow, Slow)
                executor, seconds = choose(layer, units, 16, 33)
            assert executor == fast
            assert all(seconds[slow] > seconds[fast] > 0 for slow in possible - {fast})
            assert set(seconds) == {"dense", *possible}
        assert torch.equal(torch.get_rng_state(), random)
        assert all(parameter.grad is None for parameter in layer.parameters())
    assert set(choose(layer, spread(units, 16), 1, 5)[1]) == {"dense", "masked", "csr"}
    assert choose(layer, None, 1, 5) == ("dense", {})


# Triton ------------------------------------------------------------------------------------------


@pytest.mark.skipif(kernels.triton is None, reason="triton is not installed")
def test_the_kernels_in_tritons_interpreter() -> None:
    run_checks(__file__)


def agree_in_triton(
    kind: str, block: int, mask: str, tokens: int, dtype: torch.dtype, tolerance: float
) -> None:
    units = mask_of(mask, 3, 4)
    layer = layer_of(kind, 4 * block, 3 * block, units, block, dtype)
    x, d_y = torch.randn(tokens, 4 * block).to(dtype), torch.randn(tokens, 3 * block).to(dtype)
    layer._executor = kernels.Triton(units, block)  # past the check for a GPU
    got = through(layer, x, d_y)
    assert all(values.dtype == dtype for values in got.values())
    layer.double().set_mask(units, block, "masked")
    assert_near(got, through(layer, x.double(), d_y.double()), tolerance)


@pytest.mark.parametrize("kind", ["Linear", "no bias", "Conv1D"])
@pytest.mark.parametrize("mask", MASKS)
def check_it_agrees_with_the_reference(mask: str, kind: str) -> None:
    agree_in_triton(kind, 16, mask, 67, torch.float32, 5e-6)


@pytest.mark.parametrize("tokens", [1, 64, 300])
@pytest.mark.parametrize("block", [32, 48, 64, 128, 192])
def check_other_blocks(block: int, tokens: int) -> None:
    agree_in_triton("Linear", block, "random", tokens, torch.float32, 5e-6)


def check_half_precision() -> None:
    """Not bf16: the interpreter multiplies its bits as if they were integers."""
    agree_in_triton("Conv1D", 32, "random", 130, torch.float16, 0.003)


@pytest.mark.skipif(kernels.triton is None, reason="triton is not installed")
@pytest.mark.parametrize("value", ["*fp32", "*fp16", "*bf16"])
@pytest.mark.parametrize("tile", [16, 64, 128])
def test_the_kernels_compile_for_a_gpu(tile: int, value: str) -> None:
    """The compiler refuses what the interpreter lets pass, and needs no GPU."""
    GPUTarget = pytest.importorskip("triton.backends.compiler").GPUTarget
    ASTSource = pytest.importorskip("triton.compiler").ASTSource
    triton = kernels.triton
    depth = 32 if value == "*fp32" else 64
    sizes = {"TILE": tile, "DEPTH": min(tile, depth), "column_stride": 1, "ROWS": 16}
    pointers = {"x": value, "d_y": value, "weight": value, "bias": value, "y": value}
    pointers |= {"sums": "*fp32", "starts": "*i32", "others": "*i32"}
    pointers |= {"rows": "*i64", "columns": "*i64"}
    for kernel, tokens in (
        (kernels._times_blocks, 2 * depth),
        (kernels._outer_blocks, depth),
        (kernels._add_parts, 0),
    ):
        constants = {k: v for k, v in (sizes | {"TOKENS": tokens}).items() if k in kernel.arg_names}
        signature = {
            name: "constexpr" if name in constants else pointers.get(name, "i32")
            for name in kernel.arg_names
        }
        # What a launch finds out about its arguments, and what the pipelining of loads needs.
        aligned = {
            (number,): [["tt.divisibility", 16]]
            for number, name in enumerate(kernel.arg_names)
            if name in pointers or name.endswith("_features") or name == "row_stride"
        }
        source = ASTSource(kernel, signature, constants, aligned)
        options = {"num_warps": kernels._warps(tile)}
        found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert found.asm["ptx"] and found.metadata.shared <= 99 * 1024


def test_without_triton_the_kernels_import_and_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    runpy.run_path(kernels.__file__)
    monkeypatch.setattr(kernels, "triton", None)
    lack = missing("triton", 64, torch.empty(1, device="meta"))
    assert lack is not None and "triton (pip install triton)" in lack


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("block", [16, 64, 128])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 5e-6), (torch.bfloat16, 0.02), (torch.float16, 0.003)],
)
def test_the_kernels_agree_with_the_reference_on_a_gpu(
    dtype: torch.dtype, tolerance: float, block: int, kind: str
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    units = mask_of("empty rows and columns", 5, 4)
    layer = layer_of(kind, 4 * block, 5 * block, units, block, dtype).cuda()
    x, d_y = torch.randn(3, 333, 4 * block).cuda(), torch.randn(3, 333, 5 * block).cuda()
    layer.set_mask(units, block, "triton")
    got = through(layer, x.to(dtype), d_y.to(dtype))
    layer.double().set_mask(units, block, "masked")
    wanted = through(layer, x.to(dtype).double(), d_y.to(dtype).double())
    assert_near(got, wanted, tolerance)
