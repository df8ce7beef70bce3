"""The page that `python -m pipeline plan` prints."""

from __future__ import annotations

from pipeline.models.build import parameter_count
from pipeline.plan.cost import Cost, Machine, cost_of
from pipeline.plan.memory import memory_of, meta_module
from pipeline.recipe import Recipe
from pipeline.recipe.sparsity import MixedConfig
from pipeline.sparsity.design import design


def plan(recipe: Recipe, machine: Machine) -> str:
    """Memory, time, traffic and money of a recipe. RecipeError where it does not divide."""
    dtype = "bf16" if recipe.precision.dtype == "auto" else recipe.precision.dtype
    accumulation = recipe.accumulation(machine.devices)
    module = meta_module(recipe)
    parameters, batch = parameter_count(module), recipe.batch
    memory = memory_of(recipe, module, machine.devices, dtype)
    forward = module.backbone.flops(batch.window_tokens)
    token_flops = 3 * (forward.total + module.head.dense_flops())
    width = 4 if dtype == "fp32" else 2
    tokens = batch.tokens_after(recipe.run.steps)
    cost = cost_of(
        machine, recipe.run.steps, tokens / recipe.run.steps, token_flops, parameters * width,
        recipe.engine.zero_stage,
    )  # fmt: skip
    lines = [
        f"model          {parameters / 1e6:.2f} M parameters, {dtype}, {recipe.engine.label}",
        f"batch          {batch.tokens:,} tokens = {machine.devices} devices x {batch.micro_batch} "
        f"micro-batch x {accumulation} accumulation x {batch.window_tokens} tokens",
        f"training       {recipe.run.steps:,} steps, {tokens / 1e9:.4g} G tokens, "
        f"{token_flops * tokens:.3g} FLOPs",
    ]
    if isinstance(recipe.sparsity, MixedConfig):
        found = design(recipe.sparsity, module.backbone, module.head, batch.window_tokens)
        lines.append(f"sparsity       {found.summary()}")
    lines += [f"memory         {line}" for line in memory.lines()]
    lines += _cost_lines(machine, cost)
    return "\n".join(lines)


def _cost_lines(machine: Machine, cost: Cost) -> list[str]:
    if machine.tokens_per_second:
        basis = f"{machine.tokens_per_second:,.0f} tokens/s per device"
    else:
        basis = f"{machine.utilisation:.0%} of {machine.tflops:g} TFLOP/s per device"
    lines = [
        f"step           {1000 * cost.compute_s:,.1f} ms of computation at {basis}",
        f"communication  {cost.exchanged_bytes / 1e6:,.1f} MB a step from each device, "
        f"{cost.link_bytes / 1e6:,.1f} MB through each node's link",
    ]
    if machine.devices > 1:
        many = machine.devices > machine.node_devices
        waiting = f", {machine.waiting:.0%} waiting" if many else ""
        lines.append(
            f"efficiency     {cost.efficiency:.1%}: {machine.devices} devices do the work of "
            f"{machine.devices * cost.efficiency:.1f} ({machine.link_gigabytes:g} GB/s a node"
            f"{waiting})"
        )
    lines.append(f"time           {cost.hours:,.2f} hours")
    if cost.money is not None:
        lines.append(f"money          {cost.money:,.2f} at {machine.price:g} per device and hour")
    return lines
