"""Batch norm in plain differentiable torch arithmetic: tangents, and the derivatives of its backward.

With ``g`` the gradient that relu let pass and M the values per channel::

    xhat = (x - mean) r     grad_bias = sum g     grad_weight = sum g xhat     grad_residual = g
    grad_input = weight r P(g),  P(g) = g - mean(g) - xhat mean(g xhat)  in training,  P(g) = g  in evaluation

P is its own transpose, and the transpose of d xhat / d x is r P.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, float32, where


class Terms:
    """xhat, r and the relu mask as functions of x, with per-channel values shaped to broadcast over x."""

    def __init__(self, saved: Sequence[Tensor | None], eps: float, train: bool, relu: bool):
        """``saved`` is (input, weight, bias, output or None, stats)."""
        input, weight, bias, output, stats = saved
        assert input is not None and stats is not None
        self.dims = [d for d in range(input.dim()) if d != 1]
        self.train, self.dtype = train, float32 if input.dtype.itemsize == 2 else input.dtype
        d = input.to(self.dtype) - self.channel(stats[0])
        if train:  # mean and variance follow x: derivatives of any order come from here
            d = d - self.mean(d)
            self.r = (self.mean(d.square()) + eps).rsqrt()
        else:
            self.r = (self.channel(stats[1]) + eps).rsqrt()
        self.xhat = d * self.r
        self.weight = None if weight is None else self.channel(weight)
        self.scale = self.r if self.weight is None else self.r * self.weight
        self.keep = None
        if relu:
            y = self.affine(bias) if output is None else output
            self.keep = ~(y.detach() <= 0)

    def channel(self, t: Tensor) -> Tensor:
        return t.to(self.dtype).view(1, -1, *(1,) * (len(self.dims) - 1))

    def affine(self, bias: Tensor | None) -> Tensor:
        y = self.xhat if self.weight is None else self.xhat * self.weight
        return y if bias is None else y + self.channel(bias)

    def mean(self, t: Tensor) -> Tensor:
        return t.mean(self.dims, keepdim=True)

    def passed(self, g: Tensor) -> Tensor:
        """What relu lets through."""
        g = g.to(self.dtype)
        return g if self.keep is None else where(self.keep, g, g.new_zeros(()))

    def project(self, g: Tensor) -> Tensor:
        return g - self.mean(g) - self.xhat * self.mean(g * self.xhat) if self.train else g


def forward_tangent(
    t: Terms,
    d_input: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
    d_residual: Tensor | None,
) -> Tensor:
    """d out = weight r P(d x) + xhat d weight + d bias + d residual, where relu passes."""
    total = t.xhat.new_zeros(()).expand_as(t.xhat)
    if d_input is not None:
        total = total + t.scale * t.project(d_input.to(t.dtype))
    if d_weight is not None:
        total = total + t.xhat * t.channel(d_weight)
    if d_bias is not None:
        total = total + t.channel(d_bias)
    if d_residual is not None:
        total = total + d_residual.to(t.dtype)
    return t.passed(total)


def backward_transpose(
    t: Terms,
    grad_output: Tensor,
    to_input: Tensor | None,
    to_weight: Tensor | None,
    to_bias: Tensor | None,
    to_residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients for grad_output, input and weight from those of the backward's four results.

    L = <a, weight r P(g)> + <to_weight, sum g xhat> + <to_bias, sum g> + <to_residual, g>, with a = to_input.
    """
    g = t.passed(grad_output)
    zero = g.new_zeros(()).expand_as(g)
    for_g, for_xhat, for_input, for_weight = zero, zero, zero, None
    if to_input is not None:
        a, pg = to_input.to(t.dtype), t.project(g)
        for_g = for_g + t.scale * t.project(a)
        if t.weight is not None:
            for_weight = (t.r * a * pg).sum(t.dims)
        if t.train:
            for_xhat = -t.scale * (a * t.mean(g * t.xhat) + g * t.mean(a * t.xhat))
            for_input = -t.scale * t.r * t.xhat * t.mean(a * pg)  # through the factor r in front of P
    if to_weight is not None:
        for_g = for_g + t.channel(to_weight) * t.xhat
        for_xhat = for_xhat + t.channel(to_weight) * g
    if to_bias is not None:
        for_g = for_g + t.channel(to_bias)
    if to_residual is not None:
        for_g = for_g + to_residual.to(t.dtype)
    return t.passed(for_g), for_input + t.r * t.project(for_xhat), for_weight


def backward_tangent(
    t: Terms, grad_output: Tensor, d_grad: Tensor | None, d_input: Tensor | None, d_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tangents of the backward's four results."""
    g = t.passed(grad_output)
    dg = t.xhat.new_zeros(()).expand_as(g) if d_grad is None else t.passed(d_grad)
    pg = t.project(g)
    through, d_weight_grad = t.scale * t.project(dg), dg * t.xhat
    if d_weight is not None:
        through = through + t.channel(d_weight) * t.r * pg
    if d_input is not None:
        dx = d_input.to(t.dtype)
        d_xhat = t.r * t.project(dx)
        d_weight_grad = d_weight_grad + g * d_xhat
        if t.train:
            d_pg = -(d_xhat * t.mean(g * t.xhat) + t.xhat * t.mean(g * d_xhat))
            through = through + t.scale * (d_pg - t.r * t.mean(t.xhat * dx) * pg)
    return through, d_weight_grad.sum(t.dims), dg.sum(t.dims), dg
