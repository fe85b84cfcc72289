"""Groups of 4 and 8 channels that share vectors: exact on integers, for every instruction set."""

import pytest
import torch
import torch.nn.functional as F

import convnorm.functional as CF
from convnorm import backends, explain
from convnorm.testing import assert_same
from tests.isas import ISAS, isas

PROBLEMS = {  # spatial size, window, stride, dilation, padding
    "plain": ((12, 28), (3, 3), 1, 1, 1),
    "one row": ((1, 13), (1, 3), 1, 1, (0, 1)),
    "narrow": ((9, 2), (3, 3), 1, 1, (0, 2)),
    "tall windows": ((17, 11), (5, 3), 1, (2, 1), (4, 0)),
    "strided rows": ((14, 30), (3, 3), (3, 1), 1, (1, 0)),
    "rows without a tap": ((9, 8), (1, 3), (2, 1), 1, 0),
    "3d": ((5, 6, 7), (3, 3, 3), (2, 1, 1), 1, 1),
}


def integers(*size, dtype=torch.float32):
    return torch.randint(-4, 5, size).to(dtype)


def operands(spatial, window, groups, channels, dtype):
    layout = torch.channels_last if len(spatial) == 2 else torch.channels_last_3d
    x = integers(2, groups * channels, *spatial, dtype=dtype).contiguous(memory_format=layout)
    return x, integers(groups * channels, channels, *window, dtype=dtype), integers(groups * channels, dtype=dtype)


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize("name", PROBLEMS)
def test_forward_and_by_input(name, channels, dtype, isa):
    backends.set_isa(isa)
    spatial, window, stride, dilation, padding = PROBLEMS[name]
    x, w, b = operands(spatial, window, 8, channels, dtype)
    ours, torchs = (getattr(f, f"conv{len(spatial)}d") for f in (CF, F))
    arguments = (stride, padding, dilation, 8)
    x.requires_grad_()
    assert explain(ours, x, w, b, *arguments).kernels[0].startswith("conv_grouped")
    y = ours(x, w, b, *arguments)
    wide = x.detach().double().requires_grad_()
    expected = torchs(wide, w.double(), b.double(), *arguments)
    assert torch.equal(y, expected.to(dtype))
    g = torch.empty_like(y).copy_(integers(*y.shape))
    (grad,) = torch.autograd.grad(y, x, g)
    (expected_grad,) = torch.autograd.grad(expected, wide, g.double())
    assert torch.equal(grad, expected_grad.to(dtype))


@pytest.mark.parametrize("channels", [4, 8])
def test_with_a_sum_and_relu(channels):
    x, w, b = operands((10, 17), (3, 3), 4, channels, torch.float32)
    y = CF.conv2d(x, w, b, padding=1, groups=4)
    shortcut = torch.empty_like(y).copy_(integers(*y.shape))
    assert_same(CF.conv2d_act(x, w, b, padding=1, groups=4, residual=shortcut), (y + shortcut).relu())


def test_same_bits_for_any_number_of_threads():
    x, w, b = operands((20, 30), (3, 3), 8, 8, torch.float32)
    x, results = x + torch.rand_like(x), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(CF.conv2d(x, w, b, padding=1, groups=8))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_channels_that_do_not_fill_a_vector_have_another_kernel():
    x, w, _ = operands((8, 8), (3, 3), 3, 4, torch.float32)  # 12 channels
    with backends.using_isa(ISAS[-1]):
        assert torch.equal(CF.conv2d(x, w, groups=3), F.conv2d(x.double(), w.double(), groups=3).float())
