"""From the `head` section to a head bound to its backbone."""

from __future__ import annotations

import torch

from data_prep.errors import RecipeError
from pipeline.heads.adaptive import AdaptiveHead
from pipeline.heads.factored import FactoredHead
from pipeline.heads.gram import GramHead
from pipeline.heads.library import LibrarySoftmaxHead
from pipeline.heads.phased import PhasedHead
from pipeline.heads.sampled import SampledHead
from pipeline.heads.sharded import ShardedGramHead
from pipeline.heads.softmax import SoftmaxHead
from pipeline.heads.spherical import build_loss
from pipeline.protocols import Backbone, Head
from pipeline.recipe import Recipe
from pipeline.recipe.head import (
    AdaptiveHeadConfig,
    FactoredHeadConfig,
    HeadConfig,
    PhasedHeadConfig,
    SampledHeadConfig,
    SoftmaxHeadConfig,
)

_LARGE_LOGIT = 50.0


def build_head(recipe: Recipe, backbone: Backbone) -> Head:
    """The head of the recipe with the backbone's output matrix.

    RecipeError when the architecture alters its logits in a way that the head cannot honour.
    """
    head = _unbound(recipe.head, recipe, backbone)
    head.bind(backbone.output_weight(), backbone.output_bias())
    return head


def _unbound(section: HeadConfig, recipe: Recipe, backbone: Backbone) -> Head:
    scale, softcap = backbone.logit_scale(), backbone.logit_softcap()
    if isinstance(section, PhasedHeadConfig):
        phases = [(p.until, _unbound(p.head, recipe, backbone)) for p in section.phases]
        return PhasedHead(phases, recipe.run.steps)
    if isinstance(section, SoftmaxHeadConfig) and section.library is None:
        return SoftmaxHead(section.chunk_tokens, scale, softcap)
    if softcap is not None:
        raise RecipeError(
            f"head.kind={section.kind} cannot honour the soft-capping of the logits in this "
            "architecture: use head.kind=softmax without a library, or set its "
            "final_logit_softcapping to null"
        )
    if isinstance(section, SoftmaxHeadConfig):
        return LibrarySoftmaxHead(section.library, section.chunk_tokens, scale)
    if isinstance(section, SampledHeadConfig):
        return SampledHead(section.samples, recipe.run.seed, scale)
    if isinstance(section, AdaptiveHeadConfig):
        return AdaptiveHead(section.cutoffs, section.div_value)
    loss = build_loss(section.loss, section.epsilon, section.sharpness, section.z_offset)
    if isinstance(section, FactoredHeadConfig):
        _check_untied(backbone, "head.kind=factored", "use head.kind=gram")
        return FactoredHead(
            loss, recipe.batch.tokens_at, lr_share=section.lr / recipe.optim.lr,
            weight_decay=section.weight_decay, clip_norm=section.clip_norm, logit_scale=scale,
        )  # fmt: skip
    if section.sharded:
        _check_untied(backbone, "head.sharded=true", "set head.sharded=false")
        _check_adamw(recipe)
        return ShardedGramHead(
            loss, recipe.batch.tokens_at, recipe.optim, logit_scale=scale,
            learned_scale=section.learned_scale,
        )  # fmt: skip
    return GramHead(
        loss, recipe.batch.tokens_at, tied=_is_tied(backbone), logit_scale=scale,
        learned_scale=section.learned_scale,
    )  # fmt: skip


def _check_adamw(recipe: Recipe) -> None:
    if recipe.optim.name.lower() != "adamw":
        raise RecipeError(
            f"head.sharded=true trains its rows by AdamW, and optim.name={recipe.optim.name}: "
            "set head.sharded=false, or optim.name=adamw"
        )
    if recipe.optim.options:
        raise RecipeError(
            "head.sharded=true trains its rows by plain AdamW, which optim.options would not "
            "reach: set head.sharded=false, or remove the options"
        )


def _check_untied(backbone: Backbone, key: str, otherwise: str) -> None:
    if _is_tied(backbone):
        raise RecipeError(
            f"{key} keeps the output matrix to itself and cannot share it with the embedding: set "
            f"model.config.tie_word_embeddings=false, or {otherwise}"
        )


def _is_tied(backbone: Backbone) -> bool:
    return backbone.causal_lm.get_input_embeddings().weight is backbone.output_weight()


@torch.no_grad()
def check_head(head: Head, backbone: Backbone) -> None:
    """Prove on a few tokens that the head gives the probabilities of the model itself.

    RecipeError when the architecture changes its logits in a way that the head does not honour.
    Needs real weights: not for the meta device.
    """
    was_training = backbone.training
    backbone.eval()
    weight = backbone.output_weight()
    assert weight is not None
    ids = ((torch.arange(8, device=weight.device) * 7919 + 1) % weight.shape[0]).unsqueeze(0)
    hidden, _ = backbone(ids, None, None)
    _check_causal(backbone, ids, hidden)
    # An adaptive head has matrices of its own: there is nothing to compare.
    same = isinstance(head, AdaptiveHead) or _honours_logits(head, backbone, ids, hidden, weight)
    backbone.train(was_training)
    if not same:
        name = getattr(backbone.causal_lm.config, "model_type", "this model")
        raise RecipeError(
            f"model.architecture={name!r} changes its logits after the output matrix in a way that "
            "the head cannot honour: choose another architecture"
        )


def _check_causal(backbone: Backbone, ids: torch.Tensor, hidden: torch.Tensor) -> None:
    """RecipeError when another last token changes what was computed before it."""
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    again, _ = backbone(other, None, None)
    if not torch.allclose(hidden[:, :-1], again[:, :-1], rtol=1e-4, atol=1e-5):
        name = getattr(backbone.causal_lm.config, "model_type", "this model")
        raise RecipeError(
            f"model.architecture={name!r} sees the tokens it is to predict: set its config to "
            "causal if it has such a key, or choose another architecture"
        )


def _honours_logits(
    head: Head, backbone: Backbone, ids: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor
) -> bool:
    if not _same_log_prob(head, backbone, ids):
        return False
    # Fresh logits lie near zero, where soft-capping cannot be seen: look at large ones as well.
    original = weight.clone()
    weight.mul_(_LARGE_LOGIT / (hidden @ weight.t()).abs().max().clamp_min(1e-6))
    same = _same_log_prob(head, backbone, ids)
    weight.copy_(original)
    return same


def _same_log_prob(head: Head, backbone: Backbone, ids: torch.Tensor) -> bool:
    hidden, _ = backbone(ids, None, None)
    ours = head.log_prob(hidden)
    theirs = head.scores(backbone.causal_lm(input_ids=ids).logits.float()).log_softmax(dim=-1)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
