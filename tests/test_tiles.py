"""Convolutions of bfloat16 by tiles of products: any geometry, exact on integers, NaN where it belongs, same bits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import convnorm
import convnorm.functional as CF
from convnorm import backends
from convnorm.testing import assert_accurate, assert_same
from tests.isas import BF16
from tests.specs import without_onednn

pytestmark = pytest.mark.skipif(not BF16, reason="this processor has no products of bfloat16 (AVX-512 BF16, AMX)")

KERNELS = {"avx512bf16": "conv_tiles_8x32_avx512bf16", "amx": "conv_tiles_32x32_amx"}
kernels = pytest.mark.parametrize("kernel", [KERNELS[isa] for isa in sorted(BF16)])
PASSES = ("conv_forward", "conv_by_input", "conv_by_weight")


def channels_last(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def contiguous(t):
    return t.contiguous()


layouts = pytest.mark.parametrize("layout", [channels_last, contiguous])


def all_passes(kernel, x, w, b, grad, layout, **settings):
    """Output and gradients by convnorm's kernel for tiles; `settings` as torch names them."""
    x, w, b = (layout(t).detach().requires_grad_() if t.dim() > 1 else t.clone().requires_grad_() for t in (x, w, b))
    conv = (CF.conv1d, CF.conv2d, CF.conv3d)[x.dim() - 3]
    with backends.force(**dict.fromkeys(PASSES, kernel)):
        y = conv(x, w, b, **settings)
        return (y.detach(), *torch.autograd.grad(y, (x, w, b), layout(grad)))


def torch_passes(x, w, b, grad, dtype, **settings):
    x, w, b = (t.to(dtype).contiguous().requires_grad_() for t in (x, w, b))
    conv = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    with without_onednn():
        y = conv(x, w, b, **settings)
        return (y.detach(), *torch.autograd.grad(y, (x, w, b), grad.to(dtype).contiguous()))


@st.composite
def problems(draw):
    n = draw(st.integers(1, 3))
    per_dim = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * n))  # noqa: E731
    kernel, stride, dilation = per_dim(1, 4), per_dim(1, 3), per_dim(1, 2)
    padding = tuple(draw(st.integers(0, d * (k - 1))) for d, k in zip(dilation, kernel, strict=True))
    size = [
        max(d * (k - 1) + 1 - 2 * p, s)
        for s, p, d, k in zip(per_dim(1, (70, 20, 9)[n - 1]), padding, dilation, kernel, strict=True)
    ]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels = draw(st.integers(1, 70) if groups == 1 else st.integers(16, 40))
    filters = draw(st.sampled_from([1, 7, 16, 20, 33, 64, 70]) if groups == 1 else st.integers(16, 34))
    if channels < 16:  # sums of fewer than 16 terms are left to other kernels
        kernel = (*kernel[:-1], max(kernel[-1], -(-16 // channels)))
        size[-1] = max(size[-1], dilation[-1] * (kernel[-1] - 1) + 1)
    if filters < 16:
        stride, kernel = (1,) * n, (*kernel[:-1], max(kernel[-1], -(-16 // filters)))
        size[-1] = max(size[-1], dilation[-1] * (kernel[-1] - 1) + 1)
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x = torch.randint(-2, 3, (draw(st.integers(1, 3)), channels * groups, *size)).bfloat16()
    w = torch.randint(-2, 3, (filters * groups, channels, *kernel)).bfloat16()
    b = torch.randint(-2, 3, (filters * groups,)).bfloat16()
    kernel = KERNELS[draw(st.sampled_from(sorted(BF16)))]
    return kernel, x, w, b, settings, draw(st.sampled_from([channels_last, contiguous]))


@given(problems())
def test_integers_are_exact(problem):
    """Sums of small integers are exact in float: what is left is one rounding to bfloat16."""
    kernel, x, w, b, settings, layout = problem
    grad = torch.randint(-2, 3, torch_out(x, w, b, settings)).bfloat16()
    ours = all_passes(kernel, x, w, b, grad, layout, **settings)
    exact = torch_passes(x, w, b, grad, torch.float64, **settings)
    for name, got, true in zip(("y", "grad_x", "grad_w", "grad_b"), ours, exact, strict=True):
        assert_same(got.contiguous(), true.bfloat16(), name)


def torch_out(x, w, b, settings):
    return (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3](x.float(), w.float(), b.float(), **settings).shape


LAYERS = {  # input, weight, settings
    "3x3": ((2, 64, 28, 28), (48, 64, 3, 3), {"padding": 1}),
    "3x3, long sums": ((1, 300, 9, 9), (40, 300, 3, 3), {"padding": 1}),
    "strided": ((2, 40, 31, 30), (64, 40, 3, 3), {"stride": 2, "padding": 1}),
    "1x1": ((3, 96, 14, 14), (130, 96, 1, 1), {}),
    "1x1, strided": ((3, 64, 14, 14), (32, 64, 1, 1), {"stride": 2}),
    "long rows": ((1, 32, 3, 1100), (32, 32, 3, 3), {"padding": 1}),
    "stem": ((2, 3, 64, 64), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "LeNet": ((4, 20, 14, 14), (50, 20, 5, 5), {"padding": 2}),
    "3d": ((1, 16, 8, 9, 10), (32, 16, 3, 3, 3), {"padding": 1}),
    "groups": ((2, 96, 12, 12), (96, 32, 3, 3), {"padding": 1, "groups": 3}),
}


def layer(name):
    size, weight, settings = LAYERS[name]
    x, w, b = torch.randn(size).bfloat16(), (torch.randn(weight) / 10).bfloat16(), torch.randn(weight[0]).bfloat16()
    return x, w, b, torch.randn(torch_out(x, w, b, settings)).bfloat16(), settings


@kernels
@layouts
@pytest.mark.parametrize("name", LAYERS)
def test_as_accurate_as_torch_and_the_same_bits_for_any_threads(name, layout, kernel):
    x, w, b, grad, settings = layer(name)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(all_passes(kernel, x, w, b, grad, layout, **settings))
    for other in results[1:]:
        for got, first in zip(other, results[0], strict=True):
            assert_same(got, first)
    theirs = torch_passes(x, w, b, grad, torch.bfloat16, **settings)
    exact = torch_passes(x, w, b, grad, torch.float64, **settings)
    names = ("output", "grad_input", "grad_weight", "grad_bias")
    for what, got, their, true in zip(names, results[0], theirs, exact, strict=True):
        assert_accurate(got.contiguous(), their, true, what)


@kernels
@layouts
@pytest.mark.parametrize("name", LAYERS)
def test_nan_and_infinity_stay_in_their_windows(name, layout, kernel):
    """Tiles are filled up with zeros and with positions that are no output: none may meet a NaN."""
    x, w, b, grad, settings = layer(name)
    x.view(-1)[[0, 777, -1]] = torch.tensor([float("nan"), float("inf"), float("nan")], dtype=x.dtype)
    grad.view(-1)[[5, -1]] = float("nan")
    ours = all_passes(kernel, x, w, b, grad, layout, **settings)
    exact = torch_passes(x, w, b, grad, torch.float64, **settings)
    for what, got, true in zip(("y", "grad_x", "grad_w", "grad_b"), ours, exact, strict=True):
        assert torch.equal(got.isnan(), true.isnan()), what
        assert torch.equal(got.isinf(), true.isinf()), what


@kernels
@layouts
@pytest.mark.parametrize("name", ["3x3", "stem", "1x1"])
def test_residual_and_relu_are_rounded_once(name, layout, kernel):
    x, w, b, grad, settings = layer(name)
    residual = layout(grad)
    conv = lambda dtype: F.conv2d(x.to(dtype), w.to(dtype), b.to(dtype), **settings) + grad.to(dtype)  # noqa: E731
    with backends.force(conv_forward=kernel):
        got = CF.conv2d_act(layout(x), layout(w), b, residual=residual, act="relu", **settings)
    with without_onednn():
        assert_accurate(got.contiguous(), conv(torch.bfloat16).relu(), conv(torch.float64).relu())


@pytest.mark.parametrize("isa", sorted(BF16))
def test_chosen_for_bfloat16_only(isa):
    def kernel(dtype, channels=32, groups=1, kernel=3):
        w = torch.randn(32, channels // groups, kernel, kernel, dtype=dtype)
        return convnorm.explain(CF.conv2d, torch.randn(1, channels, 8, 8, dtype=dtype), w, groups=groups).kernels[-1]

    with backends.using_isa(isa):
        assert kernel(torch.bfloat16) == kernel(torch.bfloat16, channels=3) == KERNELS[isa]
        others = [kernel(torch.float32), kernel(torch.float16), kernel(torch.bfloat16, 32, 4)]
        assert not set(KERNELS.values()) & {*others, kernel(torch.bfloat16, 3, kernel=1)}
    with backends.using_isa("avx512"):
        assert kernel(torch.bfloat16) not in KERNELS.values()
