"""Norms with statistics per sample (layer and group norm) in plain differentiable torch arithmetic: tangents, and the
derivatives of their backward.

With ``h = weight g`` and means over the values that share statistics::

    xhat = (x - mean) r     grad_bias = sum g     grad_weight = sum g xhat
    grad_input = r P(h),    P(h) = h - mean(h) - xhat mean(h xhat)

P is its own transpose, and the transpose of d xhat / d x is r P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, float32


@dataclass(frozen=True)
class View:
    """The shape in which parameters and statistics broadcast over the input."""

    full: Sequence[int]  # of the input
    params: Sequence[int]  # of weight and bias
    over: Sequence[int]  # dimensions that share statistics
    batch: Sequence[int]  # dimensions that share parameters


class Terms:
    """xhat and r as functions of x, all tensors in the shape of a :class:`View`."""

    def __init__(self, view: View, input: Tensor, weight: Tensor | None, stats: Tensor, eps: float):
        self.view = view
        self.dtype = float32 if input.dtype.itemsize == 2 else input.dtype
        mean = stats[0].reshape([1 if d in view.over else size for d, size in enumerate(view.full)])
        d = self.full(input) - mean.to(self.dtype)
        d = d - self.mean(d)  # mean and variance follow x: derivatives of any order come from here
        self.r = (self.mean(d.square()) + eps).rsqrt()
        self.xhat = d * self.r
        self.weight = None if weight is None else self.param(weight)

    def full(self, t: Tensor) -> Tensor:
        """A tensor of input's shape."""
        return t.to(self.dtype).reshape(list(self.view.full))

    def param(self, t: Tensor) -> Tensor:
        """A tensor of weight's shape."""
        return t.to(self.dtype).reshape(list(self.view.params))

    def mean(self, t: Tensor) -> Tensor:
        return t.mean(list(self.view.over), keepdim=True)

    def sum(self, t: Tensor) -> Tensor:
        """Over what shares parameters."""
        return t.sum(list(self.view.batch)) if self.view.batch else t

    def weighted(self, t: Tensor) -> Tensor:
        return t if self.weight is None else t * self.weight

    def project(self, h: Tensor) -> Tensor:
        return h - self.mean(h) - self.xhat * self.mean(h * self.xhat)

    def zeros(self) -> Tensor:
        return self.xhat.new_zeros(()).expand_as(self.xhat)


def forward_tangent(t: Terms, d_input: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None) -> Tensor:
    """d out = weight r P(d x) + xhat d weight + d bias."""
    total = t.zeros()
    if d_input is not None:
        total = total + t.weighted(t.r * t.project(t.full(d_input)))
    if d_weight is not None:
        total = total + t.xhat * t.param(d_weight)
    return total if d_bias is None else total + t.param(d_bias)


def gradients(t: Terms, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The backward itself: grad_input, grad_weight and grad_bias."""
    g = t.full(grad_output)
    return t.r * t.project(t.weighted(g)), t.sum(g * t.xhat), t.sum(g)


def backward_transpose(
    t: Terms, grad_output: Tensor, to_input: Tensor | None, to_weight: Tensor | None, to_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for grad_output, input and weight from those of the backward's three results.

    L = <a, r P(h)> + <to_weight, sum g xhat> + <to_bias, sum g>, with a = to_input.
    """
    g = t.full(grad_output)
    for_g, for_xhat, for_input, for_weight = t.zeros(), t.zeros(), t.zeros(), t.zeros()
    if to_input is not None:
        a, h = t.full(to_input), t.weighted(g)
        through = t.r * t.project(a)
        for_g, for_weight = t.weighted(through), g * through
        for_xhat = -t.r * (a * t.mean(h * t.xhat) + h * t.mean(a * t.xhat))
        for_input = -t.r.square() * t.xhat * t.mean(a * t.project(h))  # through the factor r in front of P
    if to_weight is not None:
        for_g = for_g + t.param(to_weight) * t.xhat
        for_xhat = for_xhat + t.param(to_weight) * g
    if to_bias is not None:
        for_g = for_g + t.param(to_bias)
    return for_g, for_input + t.r * t.project(for_xhat), t.sum(for_weight)


def backward_tangent(
    t: Terms, grad_output: Tensor, d_grad: Tensor | None, d_input: Tensor | None, d_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tangents of the backward's three results."""
    g = t.full(grad_output)
    dg = t.zeros() if d_grad is None else t.full(d_grad)
    dh = t.weighted(dg) if d_weight is None else t.weighted(dg) + g * t.param(d_weight)
    through, d_weight_grad = t.r * t.project(dh), dg * t.xhat
    if d_input is not None:
        dx, h = t.full(d_input), t.weighted(g)
        d_xhat = t.r * t.project(dx)
        d_weight_grad = d_weight_grad + g * d_xhat
        d_projected = -(d_xhat * t.mean(h * t.xhat) + t.xhat * t.mean(h * d_xhat))
        through = through + t.r * (d_projected - t.r * t.mean(t.xhat * dx) * t.project(h))
    return through, t.sum(d_weight_grad), t.sum(dg)
