"""From the `head` section to a head bound to its backbone."""

from __future__ import annotations

import torch

from data_prep.errors import RecipeError
from pipeline.heads.softmax import SoftmaxHead
from pipeline.protocols import Backbone, Head
from pipeline.recipe.head import SoftmaxHeadConfig


def build_head(section: SoftmaxHeadConfig, backbone: Backbone) -> Head:
    """The head of the recipe with the backbone's output matrix."""
    head = SoftmaxHead(section.chunk_tokens, backbone.logit_scale(), backbone.logit_softcap())
    head.bind(backbone.output_weight(), backbone.output_bias())
    return head


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
    ours = head.log_prob(hidden)
    theirs = backbone.causal_lm(input_ids=ids).logits.float().log_softmax(dim=-1)
    backbone.train(was_training)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
        name = getattr(backbone.causal_lm.config, "model_type", "this model")
        raise RecipeError(
            f"model.architecture={name!r} changes its logits after the output matrix in a way that "
            "the head cannot honour: choose another architecture"
        )
