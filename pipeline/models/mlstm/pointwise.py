"""The point-wise work of a step on a processor, between its matrix products.

Here are the arrays it reads and writes, and the work itself in operations of PyTorch; `kernels_cpu`
does the same in compiled passes. Every method takes the step's number in the window, its number in
the chunk of n steps that is worked on, and the product that has just been made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Forward(NamedTuple):
    """T steps of B lanes on the way forward."""

    gates: Tensor  # (T, 4, H, B): sigmoids of z_i, z_f, 2 z_u, z_o
    mh: Tensor  # (T, H, B): W_mh h
    c: Tensor  # (T + 1, H, B)
    h: Tensor  # (T + 1, H, B)
    keep: Tensor  # (T, B): 0 where the state is zeroed before the step, else 1
    out: Tensor  # (B, T, H): h of the window's caller
    mx: Tensor  # (H, n, B): W_mx x
    operand: Tensor  # (n, columns, B): [m; x; 1], of which m is written here

    def modulate(self, t: int, k: int, product: Tensor) -> None:
        """From W_mh h to m. A lane whose h is zeroed has a product of zero."""
        torch.mul(product, self.keep[t], out=self.mh[t])
        torch.mul(self.mx[:, k], self.mh[t], out=self.operand[k, : len(product)])

    def update(self, t: int, k: int, product: Tensor) -> None:
        """From z, its rows of u doubled, to c and h."""
        i, f, s, o = torch.sigmoid(product.view_as(self.gates[t]), out=self.gates[t])
        torch.mul(f * self.keep[t], self.c[t], out=self.c[t + 1])
        self.c[t + 1].addcmul_(i, 2 * s - 1)
        torch.mul(o, _tanh(self.c[t + 1]), out=self.h[t + 1])
        self.out[:, t] = self.h[t + 1].t()


class Backward(NamedTuple):
    """T steps of B lanes on the way back. What the products of whole chunks take is also written
    with the steps side by side."""

    gates: Tensor  # these five as forward left them
    mh: Tensor
    c: Tensor
    h: Tensor
    keep: Tensor
    d_out: Tensor  # (B, T, H): from above
    mx: Tensor  # (H, n, B)
    d_c: Tensor  # (H, B): from the step after, then into the step before
    d_z: Tensor  # (4H, B), its blocks i, f, u, o
    d_mh: Tensor  # (H, B)
    all_d_z: Tensor  # (4H, n, B)
    all_d_mx: Tensor  # (H, n, B)
    all_d_mh: Tensor  # (H, n, B)
    operands: Tensor  # (columns, n, B): [m; x; 1], of which m is written here
    all_h: Tensor  # (H, n, B): h that the step began with

    def update_backward(self, t: int, k: int, product: Tensor) -> None:
        """From the gradient of h, by way of the step after, to those of z and c."""
        i, f, s, o = self.gates[t]
        u, tanh_c, keep = 2 * s - 1, _tanh(self.c[t + 1]), self.keep[t]
        d_h = product + self.d_out[:, t].t()
        d_c = self.d_c.addcmul_(d_h, o * (1 - tanh_c * tanh_c))
        d_i, d_f, d_u, d_o = self.d_z.view_as(self.gates[t])
        torch.mul(d_c * u, i * (1 - i), out=d_i)
        torch.mul(d_c * self.c[t] * keep, f * (1 - f), out=d_f)
        torch.mul(d_c * i, 1 - u * u, out=d_u)
        torch.mul(d_h * tanh_c, o * (1 - o), out=d_o)
        d_c.mul_(f * keep)
        self.all_d_z[:, k] = self.d_z

    def modulate_backward(self, t: int, k: int, product: Tensor) -> None:
        """From the gradient of m to those of W_mx x and of W_mh h."""
        mx, mh = self.mx[:, k], self.mh[t]
        torch.mul(product, mh, out=self.all_d_mx[:, k])
        torch.mul(product * mx, self.keep[t], out=self.d_mh)
        self.all_d_mh[:, k] = self.d_mh
        torch.mul(mx, mh, out=self.operands[: len(mx), k])
        # Not zeroed by resets: what it is multiplied by, all_d_mh, is.
        self.all_h[:, k] = self.h[t]


def _tanh(x: Tensor) -> Tensor:
    return 2 * torch.sigmoid(2 * x) - 1  # torch.tanh takes eight times as long on a processor
