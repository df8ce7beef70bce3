"""What a recipe's sparsity comes to for a given model: plan, matrices and counted FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.flops import Flops
from pipeline.protocols import Backbone, Head
from pipeline.recipe.sparsity import MixedConfig
from pipeline.sparsity.densities import share_out
from pipeline.sparsity.matrices import Matrix, find
from pipeline.sparsity.patterns import Pattern
from pipeline.sparsity.plan import Plan, build_plan, solve


@dataclass(frozen=True)
class Design:
    """A plan with its densities solved, what it acts on, and what it counts."""

    section: MixedConfig
    plan: Plan
    matrices: list[Matrix]
    pattern: Pattern | None
    dense: Flops  # training, of a token
    window: int

    def active_units(self, density: float) -> list[int]:
        """Of every matrix, so that `density` is the average over their weights."""
        shapes = [matrix.shape for matrix in self.matrices]
        shares = share_out(shapes, density, self.section.densities)
        units = [rows * columns for rows, columns in shapes]
        return [max(1, round(share * n)) for share, n in zip(shares, units, strict=True)]

    def count(
        self, dense: Flops, active: Sequence[int], sparse_attention: bool, scoring: bool
    ) -> Flops:
        """Training FLOPs of a token in an iteration; backward is twice the forward.

        `active` weights of every matrix count, of the head only where it is masked. An iteration
        that scores new connections forms the whole gradient of the weights, a third of what a dense
        one costs (Evci et al. 2020, appendix H).
        """
        blocks, attention, head = dense
        for matrix, weights in zip(self.matrices, active, strict=True):
            left_out = 6.0 * (matrix.size - weights) * (2 / 3 if scoring else 1.0)
            if matrix.is_head:
                head -= left_out
            else:
                blocks -= left_out
        if sparse_attention and self.pattern is not None:
            attention *= self.pattern.share(self.window)
        return Flops(blocks, attention, head)

    def flops_share(self, plan: Plan) -> float:
        """Of the FLOPs of a dense run over the same tokens."""
        iterations = used = 0.0
        for phase, share in plan.shares():
            units = self.active_units(phase.density)
            active = [n * m.block**2 for n, m in zip(units, self.matrices, strict=True)]
            evolves = phase.drop_fraction > 0 and phase.density < 1
            scoring = 1 / self.section.update_every if evolves else 0.0
            # Where scoring takes an iteration of its own, a phase of n updates takes more than n.
            length = share / (1 - scoring) if self.section.skip_optimizer_step else share
            usual, dear = (
                self.count(self.dense, active, phase.sparse_attention, s).total
                for s in (False, True)
            )
            used += length * (usual * (1 - scoring) + dear * scoring)
            iterations += length
        return used / iterations / self.dense.total

    def summary(self) -> str:
        weights = sum(matrix.size for matrix in self.matrices)
        phases = ", ".join(f"{p.name} {p.density:.3g} to {p.until:g}" for p in self.plan.phases)
        return (
            f"{len(self.matrices)} matrices, {weights / 1e6:.2f} M weights; {phases}; "
            f"{self.flops_share(self.plan):.3f} of the dense FLOPs"
        )


def design(section: MixedConfig, backbone: Backbone, head: Head, window: int) -> Design:
    """Find the matrices, count, and solve. RecipeError as `find` and `solve` have it."""
    plan = build_plan(section)
    forward = backbone.flops(window)._replace(head=head.dense_flops())
    pattern = None
    if section.attention is not None and any(p.sparse_attention for p in plan.phases):
        if forward.attention:
            pattern = Pattern(section.attention.pattern, section.attention.window)
    matrices = find(backbone, section.modules, section.mask_head, section.block)
    found = Design(section, plan, matrices, pattern, forward.times(3), window)
    if section.flops is None:
        return found
    return replace(found, plan=solve(plan, section.flops, found.flops_share))
