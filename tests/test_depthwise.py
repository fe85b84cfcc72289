"""Depthwise kernels, each forced by name: exact on integers, as accurate as torch, the same bits for any threads."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import convnorm.functional as CF
from convnorm import backends, explain
from convnorm.testing import assert_accurate, assert_same
from tests.isas import ISAS, isas
from tests.specs import DTYPES, LAYOUTS, cast, evaluate, torch_results, without_onednn
from tests.specs.conv import SPEC

CASES = [c for c in SPEC.cases if "depthwise" in c.reason and "two filters" not in c.reason]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def forced(isa):
    backends.set_isa(isa)
    name = f"conv_depthwise_{isa}"
    return backends.force(conv_forward=name, conv_by_input=name, conv_by_weight=name)


def conv(n):
    return getattr(CF, f"conv{n}d"), getattr(F, f"conv{n}d")


def with_layout(t, layout):
    return t.contiguous(memory_format=LAYOUTS[layout].get(t.dim(), torch.contiguous_format))


@isas
@layouts
@pytest.mark.parametrize("problem", CASES, ids=str)
def test_forced_by_name(problem, layout, isa):
    if layout not in problem.layouts():
        return
    for dtype in DTYPES.values():
        inputs = SPEC.inputs(problem, dtype, layout, kind="integers")
        with forced(isa):
            ours = evaluate(SPEC.ours, inputs, SPEC.grads, kind="integers")
        expected = evaluate(SPEC.theirs, cast(inputs, torch.float64), SPEC.grads, kind="integers")
        for what, value in cast(expected, dtype).items():
            assert_same(ours[what], value, f"{what}, {dtype}")


MODELS = [  # shape, kernel, stride: the layers of MobileNet, EfficientNet, ConvNeXt
    ((2, 32, 112, 112), 3, 1),
    ((2, 40, 56, 56), 3, 2),
    ((2, 48, 28, 28), 5, 2),
    ((3, 24, 14, 14), 7, 1),
    ((5, 40, 7, 7), 3, 1),
]


@isas
@layouts
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape, kernel, stride", MODELS, ids=str)
def test_as_accurate_as_torch(shape, kernel, stride, dtype, layout, isa):
    inputs = {
        "input": with_layout(torch.randn(shape, dtype=torch.float64).to(dtype), layout),
        "weight": torch.randn(shape[1], 1, kernel, kernel, dtype=torch.float64).to(dtype),
        "bias": torch.randn(shape[1], dtype=torch.float64).to(dtype),
        "stride": stride,
        "padding": kernel // 2,
        "groups": shape[1],
    }
    with forced(isa):
        ours = evaluate(SPEC.ours, inputs, SPEC.grads)
    theirs, reference = torch_results(SPEC, inputs, dtype)
    for what in ours:
        assert_accurate(ours[what], theirs[what], reference[what], what)


@isas
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("width", [1, 2, 4, 7, 8, 9, 14, 15, 16, 17, 18, 20, 31, 32, 33, 49, 70])
def test_square_windows_of_stride_1(width, kernel, isa):
    """In NCHW rows may be read where they lie, narrow ones in pairs: every end of a row, padding beyond the window."""
    integers = lambda *shape: torch.randint(-4, 5, shape).float()  # noqa: E731
    for height, padding in itertools.product((1, 4, 9), itertools.product((0, 1, kernel - 1, kernel + 1), repeat=2)):
        if height + 2 * padding[0] < kernel or width + 2 * padding[1] < kernel:
            continue
        inputs = {"input": integers(2, 3, height, width), "weight": integers(3, 1, kernel, kernel), "bias": integers(3),
                  "stride": 1, "padding": padding, "groups": 3}  # fmt: skip
        with forced(isa):
            ours = evaluate(SPEC.ours, inputs, SPEC.grads, kind="integers")
        with without_onednn():
            theirs = evaluate(SPEC.theirs, inputs, SPEC.grads, kind="integers")
        for what, value in theirs.items():
            assert_same(ours[what], value, f"{what}, {height} rows, padding {padding}")


@isas
@layouts
@pytest.mark.parametrize(
    "shape, kernel, stride",
    [((1, 1, 60, 50), 3, 1), ((4, 33, 20, 21), 5, 2), ((2, 9, 9, 300), 7, 1), ((3, 17, 9, 7), 5, 1)],
    ids=str,
)
def test_same_bits_for_any_number_of_threads(shape, kernel, stride, layout, isa):
    inputs = {
        "input": with_layout(torch.randn(shape), layout),
        "weight": torch.randn(shape[1], 1, kernel, kernel),
        "bias": torch.randn(shape[1]),
        "stride": stride,
        "padding": kernel // 2,
        "groups": shape[1],
    }
    results = []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        with forced(isa):
            results.append(evaluate(SPEC.ours, inputs, SPEC.grads))
    for other, what in itertools.product(results[1:], results[0]):
        assert_same(other[what], results[0][what], what)


@st.composite
def problems(draw):
    """A depthwise convolution of any geometry that has an output."""
    n = draw(st.integers(1, 3))
    per_dim = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * n))  # noqa: E731
    kernel, stride, padding, dilation = per_dim(1, 7), per_dim(1, 4), per_dim(0, 4), per_dim(1, 3)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [low + more for low, more in zip(least, per_dim(0, 20 if n < 3 else 5), strict=True)]
    channels = draw(st.sampled_from([1, 2, 7, 8, 9, 16, 17, 33]))
    integers = lambda *shape: torch.randint(-4, 5, shape).float()  # noqa: E731
    inputs = {
        "input": integers(draw(st.integers(1, 3)), channels, *size),
        "weight": integers(channels, 1, *kernel),
        "bias": integers(channels) if draw(st.booleans()) else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": channels,
    }
    for name in ("input", "weight"):
        inputs[name] = with_layout(inputs[name], draw(st.sampled_from(list(LAYOUTS))))
    return inputs


@given(problems(), st.sampled_from(ISAS))
def test_any_geometry_equals_torch(inputs, isa):
    with forced(isa):
        ours = evaluate(SPEC.ours, inputs, SPEC.grads, kind="integers")
    with without_onednn():
        theirs = evaluate(SPEC.theirs, inputs, SPEC.grads, kind="integers")
    for what, value in theirs.items():
        assert_same(ours[what], value, what)


@isas
def test_strides_do_not_matter(isa):
    x = torch.randint(-4, 5, (2, 20, 15, 18)).float()
    w, g = torch.randint(-4, 5, (20, 1, 3, 3)).float(), torch.randint(-4, 5, (2, 20, 15, 18)).float()
    views = {
        "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        "slice": lambda t: torch.stack([t, t], -1)[..., 0],
        "channel slice": lambda t: torch.cat([t, t], 1)[:, 20:],
        "images last": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "channels_last slice": lambda t: with_layout(torch.cat([t, t], 3), "channels_last")[..., 18:],
    }
    arguments = ([1, 1], [1] * 4, [1, 1], 20)
    ops = torch.ops.convnorm
    with forced(isa):
        plain = ops.conv_forward(x, w, None, *arguments), ops.conv_by_weight(g, x, [20, 1, 3, 3], *arguments, True)
        back = ops.conv_by_input(g, w, list(x.shape), *arguments)
        for (a, first), (b, second) in itertools.product(views.items(), views.items()):
            what = f"{a}, {b}"
            assert_same(ops.conv_forward(first(x), w, None, *arguments), plain[0], what)
            assert_same(ops.conv_by_input(first(g), w, list(x.shape), *arguments), back, what)
            for ours, expected in zip(
                ops.conv_by_weight(second(g), first(x), [20, 1, 3, 3], *arguments, True), plain[1], strict=True
            ):
                assert_same(ours, expected, what)


@isas
@layouts
def test_nan_reaches_only_its_windows_and_taps(layout, isa):
    for at, width in itertools.product([(0, 0), (3, 6), (6, 13), (9, 9)], (14, 19)):
        x, w = torch.ones(1, 16, 10, width), torch.ones(16, 1, 3, 3)
        x[0, 3, at[0], at[1]] = math.nan
        x = with_layout(x, layout)
        for padding in (0, 1):
            y = F.conv2d(x, w, None, 1, padding, 1, 16)
            weight_grad = torch.nn.grad.conv2d_weight(x, w.shape, torch.ones_like(y), 1, padding, 1, 16)
            with forced(isa):
                assert_same(CF.conv2d(x, w, None, 1, padding, 1, 16), y)
                arguments = ([1, 1], [padding] * 4, [1, 1], 16, False)
                ours = torch.ops.convnorm.conv_by_weight(torch.ones_like(y), x, list(w.shape), *arguments)[0]
            assert_same(ours, weight_grad, f"{at}, width {width}, padding {padding}")


def test_it_is_chosen_for_depthwise_alone():
    x, w = torch.randn(1, 8, 9, 9), torch.randn(8, 1, 3, 3)
    assert explain(CF.conv2d, x, w, groups=8).kernels[0].startswith("conv_depthwise_")
    told = explain(CF.conv2d, x, torch.randn(8, 4, 3, 3), groups=2)
    assert "not depthwise: groups differ from channels" in str(told) and "igemm" in told.kernels[0]
    told = explain(CF.conv2d, x, torch.randn(16, 1, 3, 3), groups=8)
    assert "not depthwise: several filters per channel" in str(told) and "igemm" in told.kernels[0]
    for op in ("conv_forward", "conv_by_input", "conv_by_weight"):
        assert "conv_depthwise_generic" in {row["kernel"] for row in backends.kernels(op)}


def test_an_empty_batch_has_zero_gradients():
    grad, x = torch.zeros(0, 8, 5, 5), torch.zeros(0, 8, 5, 5)
    for layout in LAYOUTS:
        weight, bias = torch.ops.convnorm.conv_by_weight(
            with_layout(grad, layout), with_layout(x, layout), [8, 1, 3, 3], [1, 1], [1] * 4, [1, 1], 8, True
        )
        assert_same(weight, torch.zeros(8, 1, 3, 3))
        assert_same(bias, torch.zeros(8))
