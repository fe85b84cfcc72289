"""By weight where nothing, or only a copy of the image, is packed: exact on integers, the same bits for any threads."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from convnorm import backends
from convnorm.testing import assert_accurate, assert_same
from tests.isas import ISAS, isas
from tests.specs import without_onednn

TILES = {"generic": "6x8", "avx2": "6x16", "avx512": "12x32"}


def channels_last(t):
    """Channels at distance 1, in any number of dimensions."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def contiguous(t):
    return t.contiguous()


layouts = pytest.mark.parametrize("layout", [channels_last, contiguous])


def by_weight(isa, grad, x, size, stride, padding, dilation):
    backends.set_isa(isa)
    with backends.force(conv_by_weight=f"conv_igemm_{TILES[isa]}_{isa}"):
        return torch.ops.convnorm.conv_by_weight(
            grad, x, list(size), list(stride), [*padding, *padding], list(dilation), 1, True
        )


def expected(grad, x, size, stride, padding, dilation):
    with without_onednn():
        n = len(stride)
        weight = torch.zeros(size, dtype=x.dtype)
        return torch.ops.aten.convolution_backward(
            grad.contiguous(), x.contiguous(), weight, [size[0]], list(stride), list(padding), list(dilation), False,
            [0] * n, 1, [False, True, True],
        )[1:]  # fmt: skip


@st.composite
def problems(draw):
    n = draw(st.integers(2, 3))
    per_dim = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * n))  # noqa: E731
    kernel, stride, padding, dilation = per_dim(1, 5), per_dim(1, 3), per_dim(0, 3), per_dim(1, 2)
    if draw(st.booleans()):  # a window whose rows are one stretch
        kernel, dilation = (*kernel[:-1], max(2, kernel[-1])), (*dilation[:-2], 1, 1)
    out = per_dim(1, 24 if n < 3 else 6)
    size = [
        max(1, (o - 1) * s - 2 * p + d * (k - 1) + 1)
        for o, s, p, d, k in zip(out, stride, padding, dilation, kernel, strict=True)
    ]
    out = [
        (i + 2 * p - d * (k - 1) - 1) // s + 1
        for i, s, p, d, k in zip(size, stride, padding, dilation, kernel, strict=True)
    ]
    layout = draw(st.sampled_from([channels_last, contiguous]))
    if layout is contiguous and draw(st.booleans()):  # 1x1: rows of pixels
        kernel, stride, padding, size = (1,) * n, (1,) * n, (0,) * n, out
    channels, filters = draw(st.integers(1, 40)), draw(st.sampled_from([1, 5, 10, 13, 40, 70]))
    batch = draw(st.integers(1, 3))
    integers = lambda *shape: torch.randint(-4, 5, shape).float()  # noqa: E731
    grad = layout(integers(batch, filters, *out[:-1], out[-1] + draw(st.integers(0, 1))))[..., : out[-1]]
    x = layout(integers(batch, channels, *size))
    return draw(st.sampled_from(ISAS)), grad, x, (filters, channels, *kernel), stride, padding, dilation


@given(problems())
def test_any_geometry_equals_torch(problem):
    isa, *arguments = problem
    for ours, theirs in zip(by_weight(isa, *arguments), expected(*arguments), strict=True):
        assert_same(ours.contiguous(), theirs)


LAYERS = {  # gradient, weight, stride, padding: windows in rows, and few columns
    "the course's example": ((4, 10, 32, 32), (10, 3, 5, 5), 1, 2),
    "LeNet's second layer": ((8, 50, 14, 14), (50, 20, 5, 5), 1, 2),
    "3d": ((1, 32, 12, 12, 12), (32, 16, 3, 3, 3), 1, 1),
    "rows of 72 columns": ((2, 40, 9, 9), (40, 24, 3, 3), 1, 1),
    "strided": ((2, 24, 30, 30), (24, 6, 3, 3), 2, 1),
    "1x1": ((3, 100, 28, 28), (100, 64, 1, 1), 1, 0),
    "1x1, more channels": ((5, 33, 14, 14), (33, 130, 1, 1), 1, 0),
    "1x1, more than a block": ((2, 300, 7, 7), (300, 600, 1, 1), 1, 0),
}


def image_of(layer):
    torch.manual_seed(0)
    grad_size, size, stride, padding = LAYERS[layer]
    image = [(o - 1) * stride - 2 * padding + k for o, k in zip(grad_size[2:], size[2:], strict=True)]
    return torch.randn(grad_size), torch.randn(grad_size[0], size[1], *image)


@functools.cache
def exact(layer, dtype):
    """In extended precision: torch's float64 sums are worse than ours on some processors."""
    _, size, stride, padding = LAYERS[layer]
    grad, x = (t.to(dtype).double() for t in image_of(layer))
    n = len(size) - 2
    patches = F.pad(x, [padding] * 2 * n)
    for d, k in enumerate(size[2:]):
        patches = patches.unfold(2 + d, k, stride)
    pixels = [0, *range(2, 2 + n)]
    grad, patches = (t.numpy().astype(np.longdouble) for t in (grad, patches))
    sums = np.tensordot(grad, patches, (pixels, pixels)), grad.sum(tuple(pixels))
    return [torch.from_numpy(s.astype(np.float64)) for s in sums]


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@layouts
@pytest.mark.parametrize("layer", LAYERS)
def test_as_accurate_as_torch_and_the_same_bits_for_any_threads(layer, layout, dtype, isa):
    _, size, stride, padding = LAYERS[layer]
    n = len(size) - 2
    grad, x = (t.to(dtype) for t in image_of(layer))
    rest = (size, (stride,) * n, (padding,) * n, (1,) * n)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(by_weight(isa, layout(grad), layout(x), *rest))
    for other in results[1:]:
        for got, first in zip(other, results[0], strict=True):
            assert_same(got, first)
    peer = dtype if dtype != torch.float64 else torch.float32
    theirs = expected(grad.to(peer), x.to(peer), *rest)
    true_values = exact(layer, dtype)
    for name, got, their, true in zip(("grad_weight", "grad_bias"), results[0], theirs, true_values, strict=True):
        assert_accurate(got, their, true, name)


@isas
def test_nan_in_the_padding_of_a_row_of_weights_stays_out(isa):
    """A window row of 15 columns ends in a vector of 16: what its last lane holds is another pixel's."""
    grad, x = torch.ones(1, 4, 20, 20), torch.ones(1, 3, 20, 20)
    x[0, 2, 19, 19] = torch.nan
    rest = ((4, 3, 5, 5), (1, 1), (2, 2), (1, 1))
    ours, theirs = by_weight(isa, channels_last(grad), channels_last(x), *rest), expected(grad, x, *rest)
    assert_same(ours[0].contiguous(), theirs[0])
