"""Convolution beside its spec: modules, the course's worked numbers, properties, and the errors."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convnorm.functional as CF
import convnorm.nn as CN
from convnorm.backends import set_isa, using_winograd
from convnorm.testing import assert_accurate, assert_same
from tests.isas import isas
from tests.specs import evaluate, without_onednn
from tests.specs.conv import SPEC


def integers(*shape):
    return torch.randint(-4, 5, shape).float()


# --- modules ------------------------------------------------------------------------------------------------

MODULES = [  # class name, input shape, constructor arguments
    ("Conv1d", (2, 4, 20), {"kernel_size": 5, "padding": 2, "stride": 2}),
    ("Conv2d", (2, 4, 9, 10), {"kernel_size": 3, "padding": "same", "dilation": 2}),
    ("Conv2d", (2, 4, 9, 10), {"kernel_size": (3, 2), "padding": (2, 0), "groups": 2, "bias": False}),
    ("Conv3d", (1, 4, 5, 6, 7), {"kernel_size": 3, "padding": 1}),
]
MODES = ["zeros", "reflect", "replicate", "circular"]


def pair(name, arguments):
    """Ours and torch's module with the same integer-valued parameters."""
    ours, theirs = (getattr(m, name)(4, 6, **arguments) for m in (CN, nn))
    for p in theirs.parameters():
        p.data = integers(*p.shape)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name, shape, arguments", MODULES)
def test_module_equals_torch(name, shape, arguments, mode):
    ours, theirs = pair(name, arguments | {"padding_mode": mode})
    x = integers(*shape)
    parameters = dict(theirs.named_parameters())
    for module in (ours, theirs):
        module.leaf = x.clone().requires_grad_()
        module.out = module(module.leaf)
        module.out.backward(torch.ones_like(module.out))
    assert_same(ours.out, theirs.out)
    assert_same(ours.leaf.grad, theirs.leaf.grad, "grad_input")
    for key, p in ours.named_parameters():
        assert_same(p.grad, parameters[key].grad, f"gradient of {key}")


@pytest.mark.parametrize("name, shape, arguments", MODULES)
def test_module_is_torchs_in_everything_else(name, shape, arguments):
    ours, theirs = pair(name, arguments)
    x = integers(*shape)
    assert isinstance(ours, getattr(nn, name))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        assert_same(twin(x), ours(x))


@pytest.mark.parametrize("name, shape, arguments", MODULES)
def test_module_on_the_meta_device(name, shape, arguments):
    ours = getattr(CN, name)(4, 6, **arguments, device="meta")
    out = ours(torch.empty(shape, device="meta"))
    theirs = getattr(nn, name)(4, 6, **arguments)(torch.randn(shape))
    assert out.device.type == "meta"
    assert out.shape == theirs.shape


@pytest.mark.parametrize("name, shape, arguments", MODULES)
def test_unbatched_input(name, shape, arguments):
    ours, theirs = pair(name, arguments)
    x = integers(*shape[1:])
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("weight_layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("input_layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_may_be_mixed(input_layout, weight_layout):
    x = integers(2, 8, 9, 9).contiguous(memory_format=input_layout)
    w = integers(12, 8, 3, 3).contiguous(memory_format=weight_layout)
    ours, theirs = CF.conv2d(x, w, padding=1), F.conv2d(x, w, padding=1)
    assert_same(ours, theirs)
    assert ours.stride() == theirs.stride()


def test_autocast_follows_torch():
    x, w, b = torch.randn(2, 8, 9, 9), torch.randn(4, 8, 3, 3, requires_grad=True), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = CF.conv2d(x, w, b), F.conv2d(x, w, b)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert_accurate(ours, theirs, F.conv2d(x.double(), w.double(), b.double()))
    ours.sum().backward()
    assert w.grad.dtype == torch.float32


def test_checkpointing_and_double_use_accumulate():
    layer, theirs = pair("Conv2d", {"kernel_size": 3, "padding": 1})
    x = integers(1, 4, 5, 5).requires_grad_()
    out = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) + layer(x)
    out.sum().backward()
    (2 * theirs(x.detach())).sum().backward()
    assert_same(layer.weight.grad, theirs.weight.grad)


# --- the course's worked numbers ----------------------------------------------------------------------------


def test_ten_5x5_filters_on_32x32():
    layer = CN.Conv2d(3, 10, 5, padding=2)
    assert layer(torch.randn(1, 3, 32, 32)).shape == (1, 10, 32, 32)
    assert sum(p.numel() for p in layer.parameters()) == 760
    assert sum(p[0].numel() for p in layer.parameters()) == 76
    case = next(c for c in SPEC.cases if str(c) == "2d")
    worked = type(case)("worked", {"input": (1, 3, 32, 32), "weight": (10, 3, 5, 5)}, {"padding": 2})
    assert SPEC.flops(worked) == 2 * 768_000


def test_six_5x5_filters_without_padding():
    assert CN.Conv2d(3, 6, 5)(torch.randn(1, 3, 32, 32)).shape == (1, 6, 28, 28)
    assert CN.Conv2d(3, 6, 5)(torch.randn(2, 3, 32, 32)).shape == (2, 6, 28, 28)
    assert CN.Conv2d(3, 6, 5)(torch.randn(3, 32, 32)).shape == (6, 28, 28)


PARTS_OF_VECTORS = [  # input, filters, padding: results whose channels are not whole vectors
    ((2, 3, 32, 32), (10, 3, 5, 5), 2),
    ((2, 1, 28, 28), (6, 1, 5, 5), 0),
    ((3, 16, 13, 41), (5, 16, 3, 3), 1),
    ((2, 7, 9, 33), (12, 7, 2, 3), 0),
    ((1, 40, 6, 5), (1, 40, 3, 3), 1),
    ((2, 3, 20, 20), (8, 3, 3, 3), 1),
    ((2, 24, 11, 11), (50, 24, 1, 1), 0),
    ((2, 9, 10, 300), (33, 9, 3, 3), 1),
    ((5, 600, 7, 7), (513, 600, 3, 3), 1),
]


@pytest.mark.parametrize("x, filters, padding", PARTS_OF_VECTORS, ids=str)
@pytest.mark.parametrize("act", [None, "relu"])
def test_channels_last_results_end_within_a_vector(x, filters, padding, act):
    x, w, b = integers(*x), integers(*filters), integers(filters[0])
    with using_winograd(False):
        expected = F.conv2d(x.double(), w.double(), b.double(), padding=padding).float()
        residual = integers(*expected.shape)
        x, w, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, w, residual))
        assert_same(CF.conv2d(x, w, b, padding=padding), expected.contiguous(memory_format=torch.channels_last))
        ours = CF.conv2d_act(x, w, b, padding=padding, residual=residual, act=act)
    expected = expected + residual
    assert torch.equal(ours, expected.relu() if act else expected)


LARGER_THAN_CACHES = [  # input, filters, stride, padding: results that are written around them
    ((2, 3, 224, 224), (48, 3, 3, 3), 1, 1),
    ((2, 3, 210, 223), (64, 3, 3, 3), 1, 1),  # rows in NCHW that are not whole lines
    ((2, 3, 480, 480), (24, 3, 4, 4), (2, 1), 0),  # in channels_last
    ((1, 104, 224, 224), (96, 104, 1, 1), 1, 0),  # several chains
    ((1, 40, 200, 160), (136, 40, 3, 1), 1, (1, 0)),
]


@isas
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("x, filters, stride, padding", LARGER_THAN_CACHES, ids=str)
def test_results_larger_than_the_caches(x, filters, stride, padding, layout, isa):
    set_isa(isa)
    x, w, b = integers(*x).requires_grad_(), integers(*filters), integers(filters[0])
    y = F.conv2d(x, w, b, stride, padding)
    assert y.numel() * 4 >= 16 << 20
    residual, g = integers(*y.shape), integers(*y.shape)
    (grad,) = torch.autograd.grad(y, x, g)
    x, w, residual, g = (t.detach().contiguous(memory_format=layout) for t in (x, w, residual, g))
    x.requires_grad_()
    ours = CF.conv2d(x, w, b, stride, padding)
    assert torch.equal(ours, y)
    assert torch.equal(torch.autograd.grad(ours, x, g)[0], grad)
    ours = CF.conv2d_act(x, w, b, stride, padding, residual=residual, act="relu")
    assert torch.equal(ours, (y + residual).relu())


def test_1x1_is_one_linear_layer_at_each_pixel():
    x, w, b = integers(2, 13, 5, 7), integers(9, 13), integers(9)
    linear = F.linear(x.movedim(1, -1), w, b).movedim(-1, 1)
    assert_same(CF.conv2d(x, w[:, :, None, None], b), linear)


def test_two_3x3_without_activation_collapse_into_one_5x5():
    x, first, second = integers(1, 3, 12, 12), integers(4, 3, 3, 3), integers(5, 4, 3, 3)
    # The full convolution of the two filters, summed over the channels between them.
    both = CF.conv2d(first.transpose(0, 1), second.flip(2, 3), padding=2).transpose(0, 1)
    assert both.shape == (5, 3, 5, 5)
    assert_same(CF.conv2d(CF.conv2d(x, first), second), CF.conv2d(x, both))


def test_true_convolution_flips_the_filter():
    x, w = integers(17, 13), integers(4, 3)
    convolved = scipy.signal.convolve2d(x.numpy(), w.numpy(), mode="valid")
    assert_same(CF.conv2d(x[None, None], w.flip(0, 1)[None, None])[0, 0], torch.from_numpy(np.asarray(convolved)))


def test_convolution_is_a_matrix_product_of_patches():
    x, w, b = integers(2, 3, 9, 8), integers(5, 3, 3, 2), integers(5)
    rows = F.unfold(x, (3, 2), padding=1, stride=2)  # (n, c*kh*kw, places)
    product = w.flatten(1) @ rows + b[:, None]
    out = CF.conv2d(x, w, b, padding=1, stride=2)
    assert_same(out, product.view_as(out))
    # Its gradients are matrix products too, the input's followed by col2im.
    found = evaluate(
        CF.conv2d, {"input": x, "weight": w, "padding": 1, "stride": 2}, ("input", "weight"), kind="integers"
    )
    g = torch.autograd.grad(out.requires_grad_(), out, torch.ones_like(out))[0]
    ours_x, ours_w = torch.func.vjp(lambda x, w: CF.conv2d(x, w, padding=1, stride=2), x, w)[1](g)
    assert_same(ours_w, torch.einsum("nkp,nrp->kr", g.flatten(2), rows).view_as(w), "grad_weight")
    assert_same(ours_x, F.fold(w.flatten(1).T @ g.flatten(2), (9, 8), (3, 2), padding=1, stride=2), "grad_input")
    assert found["grad_input"].shape == x.shape


@given(stride=st.integers(1, 3), shift=st.tuples(st.integers(0, 3), st.integers(0, 3)), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_shifting_the_input_shifts_the_output(stride, shift, seed):
    """Translation equivariance: exactly, away from the border, for shifts that the stride divides."""
    torch.manual_seed(seed)
    w = integers(3, 2, 3, 3)
    x = integers(1, 2, 30, 30)
    (dy, dx) = (s * stride for s in shift)
    moved = x[:, :, dy:, dx:]
    whole, part = CF.conv2d(x, w, stride=stride), CF.conv2d(moved, w, stride=stride)
    assert_same(whole[:, :, shift[0] :, shift[1] :], part)


# --- any geometry -------------------------------------------------------------------------------------------


CHANNELS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33]  # at, below and above vectors and tiles


@st.composite
def problems(draw):
    """A convolution of any geometry that has an output, small enough for hundreds of them."""
    n = draw(st.integers(1, 3))
    per_dim = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * n))  # noqa: E731
    kernel, stride, padding, dilation = per_dim(1, 4), per_dim(1, 4), per_dim(0, 3), per_dim(1, 3)
    extra = per_dim(0, 8)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [low + more for low, more in zip(least, extra, strict=True)]
    groups = draw(st.integers(1, 3))
    images, per_group, filters = draw(st.integers(0, 3)), *draw(st.tuples(*[st.sampled_from(CHANNELS)] * 2))
    inputs = {
        "input": integers(images, groups * per_group, *size),
        "weight": integers(groups * filters, per_group, *kernel),
        "bias": integers(groups * filters) if draw(st.booleans()) else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    if n > 1 and draw(st.booleans()):
        last = {2: torch.channels_last, 3: torch.channels_last_3d}[n]
        inputs["input"] = inputs["input"].contiguous(memory_format=last)
    return inputs


@given(problems())
def test_any_geometry_equals_torch(inputs):
    ours = evaluate(SPEC.ours, inputs, SPEC.grads, kind="integers")
    with without_onednn():
        theirs = evaluate(SPEC.theirs, inputs, SPEC.grads, kind="integers")
    for what, value in theirs.items():
        assert_same(ours[what], value, what)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30])
def test_huge_and_tiny_values(scale):
    x, w = torch.randn(1, 8, 8, 8) * scale, torch.randn(8, 8, 3, 3)
    assert_accurate(CF.conv2d(x, w), F.conv2d(x, w), F.conv2d(x.double(), w.double()).float().double())


def test_nan_and_infinity_reach_only_their_windows():
    x, w = integers(1, 3, 12, 12), integers(4, 3, 3, 3)
    x[0, 1, 2, 3], x[0, 2, 9, 9] = math.nan, math.inf
    assert_same(CF.conv2d(x, w, padding=1), F.conv2d(x, w, padding=1))


# --- errors: torch's own class for the same mistake, and a text that names the argument ---------------------

X, W = (2, 4, 8, 8), (6, 4, 3, 3)


def call(input=X, weight=W, **kwargs):
    tensors = [torch.zeros(t) if isinstance(t, tuple) else t for t in (input, weight)]
    return lambda module: module.conv2d(*tensors, **kwargs)


MISTAKES = {
    "input of 2 dimensions": (call((8, 8)), "input"),
    "input of 5 dimensions": (call((1, 4, 8, 8, 8)), "input"),
    "weight of 3 dimensions": (call(weight=(6, 4, 3)), "weight"),
    "channels do not match": (call((2, 5, 8, 8)), "channels"),
    "groups do not divide the channels": (call((2, 4, 8, 8), (6, 1, 3, 3), groups=3), "groups"),
    "groups do not divide the filters": (call((2, 4, 8, 8), (5, 2, 3, 3), groups=2), "groups"),
    "groups 0": (call(groups=0), "groups"),
    "stride 0": (call(stride=0), "stride"),
    "negative stride": (call(stride=-1), "stride"),
    "stride of three": (call(stride=(1, 1, 1)), "stride"),
    "dilation 0": (call(dilation=0), "dilation"),
    "negative padding": (call(padding=-1), "padding"),
    "padding of an unknown word": (call(padding="full"), "padding"),
    "padding same with a stride": (call(padding="same", stride=2), "stride"),
    "kernel larger than the input": (call((2, 4, 2, 2)), "kernel|output"),
    "bias of a wrong size": (call(bias=torch.zeros(5)), "bias"),
    "bias of two dimensions": (call(bias=torch.zeros(6, 1)), "bias"),
    "weight of another dtype": (call(weight=torch.zeros(W, dtype=torch.float64)), "float64"),
    "bias of another dtype": (call(bias=torch.zeros(6, dtype=torch.float64)), "float64"),
}


@pytest.mark.parametrize("mistake, text", MISTAKES.values(), ids=MISTAKES)
def test_errors_are_of_torchs_class_and_name_the_argument(mistake, text):
    with pytest.raises(Exception) as theirs:
        mistake(F)
    with pytest.raises(theirs.type, match=f"(?i)conv.*({text})") as ours:
        mistake(CF)
    assert ours.type is theirs.type
    assert ".cpp" not in str(ours.value), "no file paths in an error"


def test_integers_have_no_kernel_here():
    """torch computes them, slowly; here they are refused, as by every torch op without an integer kernel."""
    with pytest.raises(NotImplementedError, match=r"conv2d: input has dtype torch\.int64"):
        CF.conv2d(torch.zeros(X, dtype=torch.int64), torch.zeros(W, dtype=torch.int64))


def test_meta_mixed_with_real_tensors_is_refused():
    """torch answers with uninitialised memory here; a fake must not."""
    for x, w in (("cpu", "meta"), ("meta", "cpu")):
        with pytest.raises(RuntimeError, match="same device"):
            CF.conv2d(torch.zeros(X, device=x), torch.zeros(W, device=w))
