"""Sparse attention against attention under a dense boolean mask, alone and inside models."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from data_prep.errors import RecipeError
from pipeline.sparsity.attention import sparse_attention
from pipeline.sparsity.attention_switch import AttentionSwitch
from pipeline.sparsity.causal_kernels import CpuFlash, Products
from pipeline.sparsity.patterns import Kind, Pattern

torch.set_num_threads(1)

KINDS: tuple[Kind, ...] = get_args(Kind)
patterns = st.builds(Pattern, st.sampled_from(KINDS), st.integers(1, 24))


# Patterns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("local", ["1....", "11...", ".11..", "..11.", "...11"]),
        ("strided", ["1....", ".1...", "1.1..", ".1.1.", "1.1.1"]),
        ("local_strided", ["1....", "11...", "111..", ".111.", "1.111"]),
        ("fixed", ["1....", "11...", ".11..", ".111.", ".1.11"]),
    ],
)
def test_patterns_are_what_they_are_called(kind: Kind, rows: list[str]) -> None:
    mask = Pattern(kind, 2).mask(5)
    assert ["".join(".1"[int(x)] for x in row) for row in mask.tolist()] == rows


@given(pattern=patterns, length=st.integers(1, 60))
def test_entries_are_counted_without_the_mask(pattern: Pattern, length: int) -> None:
    assert pattern.entries(length) == int(pattern.mask(length).sum())
    assert 0 < pattern.share(length) <= 1


def test_shares_of_the_paper() -> None:
    shares = [round(Pattern(kind, 128).share(1024), 3) for kind in KINDS]
    assert shares == [0.234, 0.009, 0.241, 0.133]


def test_patterns_refuse_what_they_cannot_be() -> None:
    with pytest.raises(RecipeError, match="'ring' is unknown: use one of local, strided"):
        Pattern("ring", 8)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="window 0 is below 1"):
        Pattern("local", 0)


# Attention -------------------------------------------------------------------------------------


def draw(
    length: int, heads: int = 4, groups: int = 2, depth: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Query as a model lays it out, and key and value with fewer heads."""
    query = torch.randn(2, length, heads, depth, dtype=dtype).transpose(1, 2)
    key, value = torch.randn(2, 2, groups, length, depth, dtype=dtype)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def with_gradients(out: Tensor, leaves: tuple[Tensor, ...], d_out: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out, leaves, d_out)]


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


def worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(float((a.double() - b.double()).detach().abs().max()) for a, b in pairs)


@settings(deadline=None, max_examples=60)
@given(
    pattern=patterns, length=st.integers(1, 50), groups=st.sampled_from([1, 2, 4]),
    depth=st.integers(1, 9), scale=st.sampled_from([None, 0.3, 1.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_it_is_attention_under_the_mask(
    pattern: Pattern, length: int, groups: int, depth: int, scale: float | None, seed: int
) -> None:
    torch.manual_seed(seed)
    leaves = draw(length, groups=groups, depth=depth)
    d_out = torch.randn(2, 4, length, depth, dtype=torch.float64)
    ours = with_gradients(sparse_attention(*leaves, pattern, scale), leaves, d_out)
    theirs = with_gradients(masked(*leaves, pattern.mask(length), scale), leaves, d_out)
    assert worst(ours, theirs) < 1e-11


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06), (torch.float16, 0.01)]
)
def test_every_precision(kind: Kind, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(1)
    leaves = draw(300, depth=16, dtype=dtype)
    d_out = torch.randn(2, 4, 300, 16, dtype=dtype)
    pattern = Pattern(kind, 32)
    ours = with_gradients(sparse_attention(*leaves, pattern), leaves, d_out)
    exact = tuple(x.detach().double().requires_grad_() for x in leaves)
    theirs = with_gradients(masked(*exact, pattern.mask(300)), exact, d_out.double())
    assert {x.dtype for x in ours} == {dtype}
    assert worst(ours, theirs) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_scores_far_apart_stay_finite(kind: Kind) -> None:
    torch.manual_seed(2)
    leaves = draw(37)
    d_out = torch.randn(2, 4, 37, 5, dtype=torch.float64)
    pattern = Pattern(kind, 8)
    ours = with_gradients(sparse_attention(*leaves, pattern, 400.0), leaves, d_out)
    theirs = with_gradients(masked(*leaves, pattern.mask(37), 400.0), leaves, d_out)
    assert worst(ours, theirs) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_no_position_sees_a_later_one(kind: Kind) -> None:
    torch.manual_seed(3)
    query, key, value = draw(29)
    first = sparse_attention(query, key, value, Pattern(kind, 6))
    with torch.no_grad():
        key[:, :, 17:] += 5
        value[:, :, 17:] -= 5
    second = sparse_attention(query, key, value, Pattern(kind, 6))
    assert torch.equal(first[:, :, :17], second[:, :, :17])
    assert not torch.equal(first[:, :, 17:], second[:, :, 17:])


def test_no_scores_of_all_pairs_are_ever_held() -> None:
    def bytes_of(length: int) -> int:
        leaves = draw(length, depth=8, dtype=torch.float32)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            sparse_attention(*leaves, Pattern("local_strided", 32)).sum().backward()
        return sum(max(event.self_cpu_memory_usage, 0) for event in seen.events())

    assert bytes_of(4096) < 5 * bytes_of(1024)


def test_plain_products_agree_with_the_fused_kernel() -> None:
    torch.manual_seed(4)
    q, k, v = (x.detach() for x in draw(19, groups=4))
    grad = torch.randn(2, 4, 19, 5, dtype=torch.float64)
    found = []
    for kernel in (CpuFlash(), Products()):
        out, lse = kernel.forward(q, k, v, 0.7)
        found.append([out, lse, *kernel.backward(grad, q, k, v, out, lse, 0.7)])
    assert worst(*found) < 1e-12


@pytest.mark.parametrize("kind", ["local", "local_strided"])
def test_a_kernel_that_slides_takes_the_window_at_once(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, pattern = draw(37), Pattern(kind, 8)
    d_out = torch.randn(2, 4, 37, 5, dtype=torch.float64)
    in_blocks = with_gradients(sparse_attention(*leaves, pattern), leaves, d_out)
    windows = []

    class Sliding(Products):
        slides = True

        def forward(self, *given: Any) -> tuple[Tensor, Tensor]:
            windows.append(given[-1])
            return super().forward(*given)

    monkeypatch.setattr("pipeline.sparsity.attention.kernel_for", lambda q: Sliding())
    at_once = with_gradients(sparse_attention(*leaves, pattern), leaves, d_out)
    assert windows == ([8] if kind == "local" else [8, None])
    assert worst(at_once, in_blocks) < 1e-12


def test_what_does_not_fit_together_is_refused() -> None:
    query, key, value = draw(8)
    for wrong in (key[:, :, :5], key[..., :3], key[:, :1].expand(-1, 3, -1, -1)):
        with pytest.raises(RecipeError, match="found query .* expected .* use dense attention"):
            sparse_attention(query, wrong, value, Pattern("local", 4))


# Inside models ---------------------------------------------------------------------------------

LENGTH = 21
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 32}
UNDROPPED = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2 | UNDROPPED),
    "gpt2 with scales of its own": (
        "gpt2", GPT2 | UNDROPPED | {"scale_attn_by_inverse_layer_idx": True},
    ),
    "llama": ("llama", GROUPED),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 16}),
    "gpt_neox": ("gpt_neox", SIZES),
    "opt": ("opt", SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "granite": ("granite", GROUPED | {"attention_multiplier": 0.4}),
}  # fmt: skip


def model(architecture: str, settings: dict[str, Any], attention: str = "sdpa") -> Any:
    """A tiny causal LM whose weights are large enough for attention to matter."""
    torch.manual_seed(5)
    ids = {"vocab_size": 48, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 1}
    config = AutoConfig.for_model(architecture, **settings, **ids)
    config.use_cache = False
    made = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return made


def tokens() -> Tensor:
    return torch.randint(48, (2, LENGTH), generator=torch.Generator().manual_seed(6))


def logits_and_gradients(causal_lm: nn.Module, **given: Tensor) -> list[Tensor]:
    causal_lm.zero_grad()
    out = causal_lm(input_ids=tokens(), **given).logits
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in causal_lm.parameters() if p.grad is not None)]


def additive(pattern: Pattern) -> Tensor:
    blocked = ~pattern.mask(LENGTH).expand(2, 1, -1, -1)
    return torch.zeros(blocked.shape, dtype=torch.float64).masked_fill(blocked, -1e30)


def relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    scales = [max(1e-6, float(b.abs().max())) for b in theirs]
    pairs = zip(ours, theirs, scales, strict=True)
    return max(float((a - b).abs().max()) / scale for a, b, scale in pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_switched_model_is_the_model_under_the_mask(name: str, kind: Kind) -> None:
    # Eager attention would round its softmax to fp32; this one is exact under a given mask.
    ours, theirs = model(*MODELS[name]).double(), model(*MODELS[name]).double()
    switch, pattern = AttentionSwitch(ours), Pattern(kind, 6)
    switch.pattern = pattern
    found = logits_and_gradients(ours)
    # OPT would count its positions by the mask.
    dense = {"attention_mask": additive(pattern), "position_ids": torch.arange(LENGTH).unsqueeze(0)}
    assert relative(found, logits_and_gradients(theirs, **dense)) < 1e-6
    assert relative(found, logits_and_gradients(theirs)) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_switched_off_it_is_the_model_as_built(name: str) -> None:
    untouched, ours = model(*MODELS[name]), model(*MODELS[name])
    expected = logits_and_gradients(untouched.train())
    switch = AttentionSwitch(ours.eval())
    assert not ours.training and switch.pattern is None
    assert relative(logits_and_gradients(ours.train()), expected) == 0
    switch.pattern = Pattern("local", 3)
    assert switch.pattern == Pattern("local", 3)
    assert relative(logits_and_gradients(ours), expected) > 1e-3
    switch.pattern = None
    assert relative(logits_and_gradients(ours), expected) == 0
    assert ours.config._attn_implementation == "sdpa"


def test_two_models_hold_patterns_of_their_own() -> None:
    one, two = model(*MODELS["llama"]), model(*MODELS["llama"])
    first, second = AttentionSwitch(one), AttentionSwitch(two)
    first.pattern, second.pattern = Pattern("local", 3), Pattern("fixed", 5)
    both = [logits_and_gradients(one), logits_and_gradients(two)]
    first.pattern = Pattern("fixed", 5)
    assert relative(*both) > 1e-3
    assert relative(logits_and_gradients(one), both[1]) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_pattern_outlives_a_change_of_precision(dtype: torch.dtype) -> None:
    ours = model(*MODELS["llama"])
    switch = AttentionSwitch(ours)
    switch.pattern = Pattern("local_strided", 6)
    expected = ours(input_ids=tokens()).logits
    found = ours.to(dtype).eval()(input_ids=tokens()).logits
    assert found.dtype == dtype
    assert (found - expected).norm() < 0.1 * expected.norm()
    switch.pattern = None
    assert (ours(input_ids=tokens()).logits - expected).norm() > 0.1 * expected.norm()


def test_looking_leaves_the_random_numbers_alone() -> None:
    made = model("gpt2", GPT2 | UNDROPPED | {"resid_pdrop": 0.5})
    before = torch.get_rng_state()
    AttentionSwitch(made)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_configuration_does_not_know_of_it() -> None:
    made = model(*MODELS["llama"])
    AttentionSwitch(made).pattern = Pattern("local", 3)
    assert "sparse_" not in made.config.to_json_string(use_diff=False)


REFUSED = {
    "dropout": ("gpt2", GPT2, "attention dropout 0.1, expected 0"),
    "window": ("mistral", GROUPED | {"sliding_window": 8}, "a sliding window"),
    "mixed layers": ("gemma3_text", GROUPED | {"head_dim": 8}, "a sliding window"),
    "own attention": ("bloom", {"n_layer": 2, "n_head": 4, "hidden_size": 32}, "other ways"),
    "recurrence": ("mamba", {"num_hidden_layers": 2, "hidden_size": 32}, "other ways"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_patterns_would_change_otherwise_is_refused(why: str) -> None:
    architecture, settings, message = REFUSED[why]
    made = model(architecture, settings, "eager")
    with pytest.raises(RecipeError, match=message):
        AttentionSwitch(made)
    assert made.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "named", [{"softcap": 30.0}, {"sliding_window": 4}, {"s_aux": torch.zeros(4)}]
)
def test_what_architectures_add_to_attention_is_refused(named: dict[str, Any]) -> None:
    AttentionSwitch(model(*MODELS["llama"])).pattern = Pattern("local", 3)
    attention = AttentionInterface()["sparse_local_3"]
    attention(nn.Module(), *draw(8), None, position_ids=torch.arange(8), softcap=None)
    with pytest.raises(RecipeError, match=f"found {next(iter(named))}; expected full causal"):
        attention(nn.Module(), *draw(8), None, **named)
    with pytest.raises(RecipeError, match="found is_causal=False"):
        attention(nn.Module(), *draw(8), None, is_causal=False)


def test_padding_masks_and_caches_are_refused() -> None:
    made = model(*MODELS["llama"])
    AttentionSwitch(made).pattern = Pattern("local", 3)
    ones = torch.ones(2, LENGTH, dtype=torch.int64)
    made(input_ids=tokens(), attention_mask=ones)
    padded = ones.clone()
    padded[0, :4] = 0
    with pytest.raises(RecipeError, match="padding"):
        made(input_ids=tokens(), attention_mask=padded)
    with pytest.raises(RecipeError, match="attention_mask"):
        made(input_ids=tokens(), attention_mask=additive(Pattern("local", 3)).float())
    with pytest.raises(RecipeError, match="a cache of earlier tokens"):
        made.generate(tokens()[:1], max_new_tokens=3, use_cache=True, pad_token_id=0)
