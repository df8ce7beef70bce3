"""Hours, bytes between devices, efficiency and money of a run, from sizes and stated rates."""

from __future__ import annotations

from typing import NamedTuple


class Machine(NamedTuple):
    """What a run would be given."""

    devices: int = 1
    node_devices: int = 8  # that share one link to the other nodes
    tflops: float = 989.0  # peak of a device
    utilisation: float = 0.4  # share of the peak that training alone reaches on one device
    tokens_per_second: float | None = None  # of one device, measured: in place of both
    link_gigabytes: float = 50.0  # per second, of a node's link
    # Share of a step's computation lost to waiting for each other on several nodes, beside the
    # link: what is left unexplained of Puri et al.'s 109-fold of 128 devices on InfiniBand.
    waiting: float = 0.15
    price: float | None = None  # per device and hour


class Cost(NamedTuple):
    """Of a whole run, and of one of its steps."""

    compute_s: float  # a step, on one device that has its share
    link_bytes: float  # a step, through each node's link
    exchanged_bytes: float  # a step, sent by each device
    efficiency: float  # share of perfect scaling
    hours: float
    money: float | None


def cost_of(
    machine: Machine,
    steps: int,
    step_tokens: float,
    token_flops: float,
    gradient_bytes: float,
    zero_stage: int,
) -> Cost:
    """`token_flops` forward and backward; nothing of the exchange is hidden behind the backward."""
    devices = machine.devices
    rate = machine.tokens_per_second or machine.tflops * 1e12 * machine.utilisation / token_flops
    compute_s = step_tokens / devices / rate
    exchanged = _ring(devices, gradient_bytes, zero_stage)
    nodes = -(-devices // machine.node_devices)
    link = _ring(nodes, gradient_bytes, zero_stage)
    waiting = machine.waiting if nodes > 1 else 0.0
    step_s = compute_s * (1 + waiting) + link / (machine.link_gigabytes * 1e9)
    hours = steps * step_s / 3600
    money = None if machine.price is None else hours * devices * machine.price
    return Cost(compute_s, link, exchanged, compute_s / step_s, hours, money)


def _ring(members: int, gradient_bytes: float, zero_stage: int) -> float:
    """Bytes that each member sends. An all-reduce, which ZeRO 1 and 2 split into a reduce-scatter
    and a gathering of weights; ZeRO-3 gathers them twice."""
    passes = 3 if zero_stage == 3 else 2
    return passes * gradient_bytes * (members - 1) / members
