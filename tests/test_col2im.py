"""By input of few channels (conv_col2im), forced by name: exact on integers, the same bits for any threads."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

import convnorm
from convnorm import backends, explain
from convnorm.ops._fake import wants_channels_last
from convnorm.testing import assert_accurate, assert_same
from tests.isas import ISAS, isas
from tests.specs import without_onednn

LANES = {"generic": 4, "avx2": 8, "avx512": 16}


def channels_last(t):
    """Channels at distance 1, in any number of dimensions."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def by_input(isa, grad, weight, size, stride, padding, dilation):
    backends.set_isa(isa)
    with backends.force(conv_by_input=f"conv_col2im_{isa}"):
        return torch.ops.convnorm.conv_by_input(
            grad, weight, size, list(stride), [*padding, *padding], list(dilation), 1
        )


def expected(grad, weight, size, stride, padding, dilation):
    """torch's transposed convolution of the gradient, cut to the size of the input."""
    n = len(stride)
    extra = [
        i - ((o - 1) * s - 2 * p + d * (k - 1) + 1)
        for i, o, s, p, d, k in zip(size[2:], grad.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
    ]
    with without_onednn():
        return getattr(F, f"conv_transpose{n}d")(grad, weight, None, stride, padding, extra, 1, dilation)


@st.composite
def problems(draw):
    n = draw(st.integers(2, 3))
    per_dim = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * n))  # noqa: E731
    kernel, stride, padding, dilation = per_dim(1, 7), per_dim(1, 4), per_dim(0, 4), per_dim(1, 3)
    kernel, dilation = (*kernel[:-1], max(2, kernel[-1])), (*dilation[:-1], 1)
    # torch's transposed convolution takes less output_padding than stride or dilation
    out = per_dim(1, 20 if n < 3 else 5)
    extra = [draw(st.integers(0, s - 1)) for s in stride]
    size = [
        max(1, (o - 1) * s - 2 * p + d * (k - 1) + 1 + e)
        for o, s, p, d, k, e in zip(out, stride, padding, dilation, kernel, extra, strict=True)
    ]
    out = [
        (i + 2 * p - d * (k - 1) - 1) // s + 1
        for i, s, p, d, k in zip(size, stride, padding, dilation, kernel, strict=True)
    ]
    isa = draw(st.sampled_from(ISAS))
    channels, filters = draw(st.integers(1, LANES[isa] // 2)), draw(st.sampled_from([4, 5, 8, 12, 20, 33]))
    batch = draw(st.integers(1, 3))
    integers = lambda *shape: torch.randint(-4, 5, shape).float()  # noqa: E731
    grad, weight = channels_last(integers(batch, filters, *out)), integers(filters, channels, *kernel)
    assume(wants_channels_last(grad))  # of one pixel it is anybody's guess
    return isa, grad, weight, [batch, channels, *size], stride, padding, dilation


@given(problems())
def test_any_geometry_equals_torch(problem):
    isa, *arguments = problem
    assert_same(by_input(isa, *arguments).contiguous(), expected(*arguments).contiguous())


LAYERS = {  # gradient, weight, size of the input, stride, padding: stems and the layers of LeNet and the course
    "ResNet stem": ((2, 64, 56, 56), (64, 3, 7, 7), (2, 3, 112, 112), 2, 3),
    "VGG": ((1, 64, 60, 60), (64, 3, 3, 3), (1, 3, 60, 60), 1, 1),
    "ConvNeXt stem": ((1, 96, 28, 28), (96, 3, 4, 4), (1, 3, 112, 112), 4, 0),
    "LeNet": ((8, 20, 28, 28), (20, 1, 5, 5), (8, 1, 28, 28), 1, 2),
    "the course's example": ((4, 10, 32, 32), (10, 3, 5, 5), (4, 3, 32, 32), 1, 2),
}


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_as_accurate_as_torch_and_the_same_bits_for_any_threads(layer, dtype, isa):
    grad_size, weight_size, size, stride, padding = LAYERS[layer]
    if 2 * size[1] > LANES[isa] // (2 if dtype == torch.float64 else 1):
        return  # the channels fill half a vector: another kernel's
    grad, weight = torch.randn(grad_size).to(dtype), torch.randn(weight_size).to(dtype)
    rest = (list(size), (stride,) * 2, (padding,) * 2, (1, 1))
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(by_input(isa, channels_last(grad), weight, *rest))
    for other in results[1:]:
        assert_same(other, results[0])
    peer = dtype if dtype != torch.float64 else torch.float32
    theirs = expected(grad.to(peer), weight.to(peer), *rest)
    assert_accurate(results[0], theirs, expected(grad.double(), weight.double(), *rest), "grad_input")


@isas
def test_nan_reaches_only_its_window(isa):
    grad, weight = torch.ones(1, 8, 20, 20), torch.ones(8, 1, 5, 5)
    grad[0, 3, 7, 9] = torch.nan
    rest = ([1, 1, 39, 39], (2, 2), (2, 2), (1, 1))
    assert_same(by_input(isa, channels_last(grad), weight, *rest), expected(grad, weight, *rest))


def test_it_is_chosen_for_few_channels_in_channels_last():
    weight, size = torch.randn(64, 3, 7, 7), [1, 3, 32, 32]
    rest = ([2, 2], [3] * 4, [1, 1], 1)
    op, grad = torch.ops.convnorm.conv_by_input, torch.randn(1, 64, 16, 16)
    backends.set_isa("auto")
    wide = convnorm._C.supported_isa() != "generic"
    assert ("col2im" in explain(op, channels_last(grad), weight, size, *rest).kernels[0]) == wide
    assert "igemm" in explain(op, grad, weight, size, *rest).kernels[0]
    assert "the result or the gradient is not channels_last" in str(explain(op, grad, weight, size, *rest))


@isas
def test_an_empty_batch(isa):
    grad, weight = channels_last(torch.zeros(0, 8, 5, 5)), torch.zeros(8, 1, 3, 3)
    assert by_input(isa, grad, weight, [0, 1, 5, 5], (1, 1), (1, 1), (1, 1)).shape == (0, 1, 5, 5)
