"""Small images of planes are computed as channels_last copies (conv_igemm_turned.h): exact, wherever it takes them."""

import pytest
import torch
import torch.nn.functional as F

import convnorm.functional as CF
from convnorm import backends, explain
from convnorm.testing import assert_same
from tests.isas import isas

ops = torch.ops.convnorm
TURNED = {  # input, filters, stride, padding
    "1x1": ((4, 320, 7, 7), (368, 320, 1, 1), 1, 0),
    "3x3 stride 2": ((2, 96, 14, 13), (112, 96, 3, 3), 2, 1),
    "pixels that no window reaches": ((1, 400, 12, 13), (400, 400, 3, 2), (4, 3), 0),
    "1d": ((3, 64, 40), (128, 64, 9), 1, 4),
    "3d": ((2, 64, 3, 5, 6), (80, 64, 2, 3, 2), 1, (0, 1, 0)),
    "two outputs": ((9, 336, 2, 1), (336, 336, 1, 1), 1, 0),
}
cases = pytest.mark.parametrize("size, filters, stride, padding", TURNED.values(), ids=TURNED)


def whole(*shape):
    return torch.randint(-4, 5, shape).float()


def assert_turned(op, *args, **kwargs):
    told = explain(op, *args, **kwargs)
    assert told.kernels[0].startswith("conv_igemm_turned"), str(told)


@isas
@cases
def test_exact(size, filters, stride, padding, isa):
    backends.set_isa(isa)
    n = len(size) - 2
    ours, theirs = getattr(CF, f"conv{n}d"), getattr(F, f"conv{n}d")
    x, w, b = whole(*size).requires_grad_(), whole(*filters), whole(filters[0])
    assert_turned(ours, x, w, b, stride, padding)
    y = ours(x, w, b, stride, padding)
    assert y.is_contiguous()
    wide = x.detach().double().requires_grad_()
    expected = theirs(wide, w.double(), b.double(), stride, padding)
    assert_same(y, expected.float())
    g = whole(*y.shape)
    geometry = [v if isinstance(v, (tuple, list)) else [v] * n for v in (stride, padding)]
    arguments = (g, w, x.shape, list(geometry[0]), list(geometry[1]) * 2, [1] * n, 1)
    assert_turned(ops.conv_by_input, *arguments)
    assert_same(ops.conv_by_input(*arguments), torch.autograd.grad(expected, wide, g.double())[0].float())


@cases
def test_residual_and_relu(size, filters, stride, padding):
    n = len(size) - 2
    x, w, b = whole(*size), whole(*filters), whole(filters[0])
    expected = getattr(F, f"conv{n}d")(x.double(), w.double(), b.double(), stride, padding).float()
    residual = 100 * whole(*expected.shape)
    act = getattr(CF, f"conv{n}d_act")
    assert_same(act(x, w, b, stride, padding, residual=residual), torch.relu(expected + residual))


REFUSALS = [  # reason, input, filters
    ("more than 256 outputs", (6, 320, 7, 7), (368, 320, 1, 1)),
    ("multiples of 16", (4, 320, 7, 7), (360, 320, 1, 1)),
    ("turning would cost more", (4, 64, 7, 7), (64, 64, 1, 1)),
    ("planes of one output", (2, 512, 1, 1), (512, 512, 1, 1)),
]


@pytest.mark.parametrize("reason, size, filters", REFUSALS, ids=[r[0] for r in REFUSALS])
def test_what_is_not_turned(reason, size, filters):
    told = explain(CF.conv2d, torch.randn(size), torch.randn(filters))
    assert told.kernels[0].startswith("conv_igemm_") and "turned" not in told.kernels[0] and reason in str(told)


def test_other_strides_are_not_turned():
    x = whole(4, 320, 7, 14)[..., ::2]
    w = whole(368, 320, 1, 1)
    told = explain(CF.conv2d, x, w)
    assert "pixels follow each other" in str(told) and "turned" not in told.kernels[0]
    assert_same(CF.conv2d(x, w), CF.conv2d(x.contiguous(memory_format=torch.channels_last), w).contiguous())


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("filters", [(40, 24, 3, 3), (33, 5, 5, 4), (64, 350, 3, 3), (20, 16, 3, 3, 3)], ids=str)
def test_contiguous_weights_of_a_channels_last_image(filters, dtype, isa):
    """They are packed as they lie, all taps at a time, and not tap by tap."""
    backends.set_isa(isa)
    n = len(filters) - 2
    fmt = torch.channels_last if n == 2 else torch.channels_last_3d
    x, w = whole(2, filters[1], *[8] * n).to(dtype).contiguous(memory_format=fmt), whole(*filters).to(dtype)
    ours = getattr(CF, f"conv{n}d")
    assert_same(ours(x, w), ours(x, w.contiguous(memory_format=fmt)))
