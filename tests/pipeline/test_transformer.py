"""Transformers of several families behind one backbone, and the refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING

from data_prep.errors import RecipeError
from pipeline.heads.build import check_head
from pipeline.heads.softmax import SoftmaxHead
from pipeline.models.build import build_backbone, parameter_count
from pipeline.models.transformer import TransformerBackbone, zero_residual_projections
from pipeline.protocols import Head
from pipeline.recipe.model import TransformerConfig
from pipeline.train.module import TrainModule

torch.set_num_threads(1)

VOCABULARY, WINDOW = 64, 16
SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 1}
GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": GROUPED,
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 3.0},
    "cohere": GROUPED | {"logit_scale": 0.25},
    "granite": GROUPED | {"logits_scaling": 8.0},
    "gpt_neox": SIZES,
}


def make(architecture: str, **changes: Any) -> TransformerBackbone:
    torch.manual_seed(0)
    config = ARCHITECTURES.get(architecture, {}) | changes
    section = TransformerConfig(kind="transformer", architecture=architecture, config=config)
    special = {"bos_token_id": 3, "eos_token_id": 3}
    made = build_backbone(section, VOCABULARY, WINDOW, special)
    assert isinstance(made, TransformerBackbone)
    return made


def with_head(backbone: TransformerBackbone) -> Head:
    head = SoftmaxHead(2048, backbone.logit_scale(), backbone.logit_softcap())
    head.bind(backbone.output_weight(), backbone.output_bias())
    return head


def grow(backbone: TransformerBackbone) -> None:
    """Weights as after training: logits large enough for a scale or a cap to matter."""
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(50) if parameter.dim() > 1 else parameter.add_(0.3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_gives_the_probabilities_of_the_model(architecture: str) -> None:
    backbone = make(architecture)
    head = with_head(backbone)
    check_head(head, backbone)
    grow(backbone)
    backbone.eval()
    ids = torch.randint(VOCABULARY, (2, WINDOW))
    with torch.no_grad():
        hidden, state = backbone(ids, None, None)
        ours, theirs = head.log_prob(hidden), backbone.causal_lm(ids).logits.log_softmax(-1)
    assert state is None and ours.std() > 0.3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_scale_and_cap_come_from_the_architecture() -> None:
    found = {a: (make(a).logit_scale(), make(a).logit_softcap()) for a in ARCHITECTURES}
    assert found["gemma2"] == (1.0, 3.0)
    assert found["cohere"] == (0.25, None)
    assert found["granite"] == (1 / 8, None)
    assert {found[a] for a in ("gpt2", "llama", "gpt_neox")} == {(1.0, None)}


def alter(backbone: TransformerBackbone, change: Callable[[Tensor], Tensor]) -> None:
    original = backbone.causal_lm.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        out.logits = change(out.logits)
        return out

    backbone.causal_lm.forward = forward


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "an offset": lambda logits: logits + torch.linspace(0, 1, VOCABULARY),
    "a factor": lambda logits: 1.01 * logits,
    "a soft cap that fresh weights never reach": lambda logits: 30 * torch.tanh(logits / 30),
    "a clamp that fresh weights never reach": lambda logits: logits.clamp(-20, 20),
    "ids left out": lambda logits: logits[..., :-1],
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_logits_that_are_altered_otherwise_are_refused(architecture: str, what: str) -> None:
    backbone = make(architecture)
    head = with_head(backbone)
    check_head(head, backbone)
    alter(backbone, CHANGES[what])
    with pytest.raises(RecipeError, match=f"'{architecture}' changes its logits"):
        check_head(head, backbone)


def test_adding_the_same_to_all_logits_is_no_change() -> None:
    backbone = make("llama")
    head = with_head(backbone)
    alter(backbone, lambda logits: logits + 5)
    check_head(head, backbone)


def test_an_architecture_that_sees_the_future_is_refused() -> None:
    small = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "pad_token_id": 2}
    backbone = make("xlm", **small)
    with pytest.raises(RecipeError, match="'xlm' sees the tokens it is to predict"):
        check_head(with_head(backbone), backbone)
    causal = make("xlm", causal=True, **small)
    check_head(with_head(causal), causal)


@pytest.mark.parametrize("architecture", ["gemma2", "phi3"])
def test_no_token_is_taken_for_padding(architecture: str) -> None:
    """Their own padding ids are 0, a token like any other here, and 32000, which does not exist."""
    backbone = make(architecture, **GROUPED)
    embedding = backbone.causal_lm.get_input_embeddings()
    hidden, _ = backbone(torch.zeros(1, 4, dtype=torch.long), None, None)
    hidden.pow(3).sum().backward()
    assert embedding.padding_idx is None and embedding.weight.grad[0].abs().sum() > 0


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_check_leaves_the_model_as_it_was(architecture: str) -> None:
    backbone = make(architecture).train()
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    check_head(with_head(backbone), backbone)
    assert backbone.training
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None, name


@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("lama", {}, "'lama' is not a causal language model of transformers; did you mean 'llama'"),
        ("gpt2", {"n_layers": 2}, r"config.n_layers: unknown for gpt2; did you mean 'n_layer'"),
        ("llama", {"hiden_size": 16}, "did you mean 'hidden_size'"),
        ("gpt2", {"vocab_size": 9}, "model.config.vocab_size: comes from the tokenizer"),
        ("gpt2", {"eos_token_id": 0}, "model.config.eos_token_id: comes from the tokenizer"),
        ("gpt2", {"n_positions": 15}, "window_tokens=16 exceeds the 15 .*n_positions=16"),
        ("llama", {"max_position_embeddings": 8}, "exceeds the 8 positions"),
    ],
)  # fmt: skip
def test_a_wrong_architecture_section_is_refused(
    architecture: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        make(architecture, **changes)


def test_a_window_may_fill_all_positions() -> None:
    backbone = make("gpt2", n_positions=WINDOW)
    assert backbone(torch.zeros(1, WINDOW, dtype=torch.long), None, None)[0].shape == (1, 16, 16)


def test_the_tokenizer_decides_vocabulary_and_special_ids() -> None:
    config = make("gpt2").causal_lm.config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (VOCABULARY, 3, 3)


def counted(backbone: TransformerBackbone) -> float:
    """FLOPs per token that PyTorch counts, with every product of the attention visible to it, and
    in float64, where linear layers are PyTorch's own."""
    backbone.double().causal_lm.set_attn_implementation("eager")
    ids = torch.zeros(1, WINDOW, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.eval()(ids, None, None)
    return counter.get_total_flops() / WINDOW


def test_flops_of_gpt2_are_those_that_pytorch_counts() -> None:
    backbone = make("gpt2", n_layer=3, n_embd=32)
    # PyTorch computes all of the attention square and masks half; we count the visible half.
    masked_half = 3 * 2 * WINDOW * 32
    assert backbone.flops(WINDOW).total == pytest.approx(counted(backbone) - masked_half)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "granite"])
def test_flops_of_other_families_are_those_that_pytorch_counts(architecture: str) -> None:
    backbone = make(architecture)
    masked_half = 2 * 2 * WINDOW * 16
    # Rotary angles are a product, too; it is not the model's.
    assert backbone.flops(WINDOW).total == pytest.approx(counted(backbone) - masked_half, rel=0.01)


def test_heads_may_be_wider_than_the_model() -> None:
    backbone = make("qwen3", **SIZES, num_key_value_heads=2, head_dim=32)
    heads = backbone.causal_lm.config.num_attention_heads
    masked_half = 2 * 2 * WINDOW * 32 * heads
    assert backbone.flops(WINDOW).total == pytest.approx(counted(backbone) - masked_half, rel=0.01)


MIXTURE = {**SIZES, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts": 4,
           "num_experts_per_tok": 2}  # fmt: skip


def test_of_a_mixture_the_experts_of_a_token_count() -> None:
    found = make("mixtral", **MIXTURE)
    dense = make("llama", **SIZES, num_key_value_heads=1)
    expert = 3 * 16 * 32  # of the three matrices of a layer
    router = 16 * 4
    extra = 2 * 2 * (expert + router)  # a second expert in each of two layers
    assert found.flops(WINDOW).total == pytest.approx(dense.flops(WINDOW).total + extra)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gemma2", "opt", "phi",
                                          "mixtral", "qwen2_moe", "olmoe", "gpt_oss"])  # fmt: skip
def test_layers_may_begin_as_the_identity(architecture: str) -> None:
    """Then the last state depends on the last token and its place alone, until training begins."""
    config = ARCHITECTURES.get(architecture, SIZES)
    if architecture in ("mixtral", "qwen2_moe", "olmoe", "gpt_oss"):
        wide = MIXTURE | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
        kind = CONFIG_MAPPING[architecture]
        known = {*kind().to_dict(), *kind.attribute_map}
        config = {key: value for key, value in wide.items() if key in known}
        config |= {"head_dim": 8} if architecture == "gpt_oss" else {}
    if architecture == "opt":
        config = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
        config |= {"ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.0}
    ids = torch.randint(VOCABULARY, (1, WINDOW), generator=torch.Generator().manual_seed(0))
    other = (ids + 1) % VOCABULARY
    other[:, -1] = ids[:, -1]

    def sees_the_others(zeroed: bool) -> bool:
        section = TransformerConfig(
            kind="transformer", architecture=architecture, config=config, zero_init_residual=zeroed
        )
        backbone = build_backbone(section, VOCABULARY, WINDOW, {"pad_token_id": None}).eval()
        with torch.no_grad():
            first, second = (backbone(x, None, None)[0][:, -1] for x in (ids, other))
        return not torch.allclose(first, second, atol=1e-6)

    assert not sees_the_others(zeroed=True) and sees_the_others(zeroed=False)


def test_an_architecture_without_known_names_is_not_zeroed() -> None:
    with pytest.raises(
        RecipeError, match=r"none of the known output matrices .* found \['strange'\]"
    ):
        zero_residual_projections(nn.ModuleDict({"strange": nn.Linear(2, 2)}))


def test_tied_weights_count_once() -> None:
    backbone = make("gpt2")
    d, layers = 16, 2
    block = 12 * d * d + 13 * d  # four matrices with biases, two norms
    wanted = (VOCABULARY + 32) * d + layers * block + 2 * d
    assert parameter_count(TrainModule(backbone, with_head(backbone))) == wanted
    untied = make("gpt2", tie_word_embeddings=False)
    module = TrainModule(untied, with_head(untied))
    assert parameter_count(module) == wanted + VOCABULARY * d


def test_parameters_partitioned_by_zero_3_count_in_full() -> None:
    layer = torch.nn.Linear(3, 5)
    layer.weight.ds_shape = torch.Size([50, 3])  # what DeepSpeed leaves on a partitioned parameter
    assert parameter_count(layer) == 155
