"""Winograd's method by its own bound (see backends.set_winograd), and where it runs at all."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import convnorm.functional as CF
from convnorm import backends, explain
from convnorm.testing import assert_same
from tests.isas import isas
from tests.specs import LAYOUTS

pytestmark = pytest.mark.winograd
EPS = torch.finfo(torch.float32).eps
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": LAYOUTS["channels_last"][4]}
VOLUME_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
layouts = pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)


def of_rank(functional, x):
    return functional.conv2d if x.dim() == 4 else functional.conv3d


def per_axis(value, x):
    return [value] * (x.dim() - 2) if isinstance(value, int) else list(value)


def conv(x, w, b=None, padding=1, dilation=1, stride=1):
    """Forward and the gradient by input, both proven to have run by Winograd: (output, its gradient, grad_input)."""
    x = x.detach().requires_grad_()
    arguments = {"padding": padding, "dilation": dilation, "stride": stride}
    told = explain(of_rank(CF, x), x, w, b, **arguments)
    assert all(k.startswith("conv_winograd") for k in told.kernels), str(told)
    y = of_rank(CF, x)(x, w, b, **arguments)
    g = torch.empty_like(y).copy_(torch.randn(y.shape))
    stride, pads, dilations = (per_axis(v, x) for v in (stride, padding, dilation))
    told = explain(torch.ops.convnorm.conv_by_input, g, w, x.shape, stride, pads * 2, dilations, 1)
    assert all(k.startswith("conv_winograd") for k in told.kernels), str(told)
    return y.detach(), g, torch.autograd.grad(y, x, g)[0]


def bound(source, filters):
    """The stated bound; filters are (filters, channels summed over, depth, side, side), or without a depth."""
    largest = filters.double().abs().flatten(1).sum(1).max()
    return (64 + filters[0, ..., 0, 0].numel() / 2) * EPS * source.abs().max().double() * largest


def assert_within_bound(x, w, b=None, padding=1, dilation=1, stride=1):
    y, g, grad = conv(x, w, b, padding, dilation, stride)
    wide = x.detach().double().requires_grad_()
    wide_b = None if b is None else b.double()
    expected = of_rank(F, x)(wide, w.double(), wide_b, stride, padding, dilation)
    (expected_grad,) = torch.autograd.grad(expected, wide, g.double())
    unit = 0 if b is None else EPS * b.abs().max().double()
    assert (y - expected).abs().max() <= bound(x, w) + unit
    assert (grad - expected_grad).abs().max() <= bound(g, w.transpose(0, 1))
    return y, grad


@isas
@layouts
@pytest.mark.parametrize("size", [(4, 4), (7, 7), (7, 16), (8, 8), (11, 13), (12, 9), (16, 4), (17, 17)], ids=str)
def test_sizes_at_the_edges_of_tiles(size, layout, isa):
    backends.set_isa(isa)
    x, w = torch.randn(8, 40, *size), torch.randn(36, 40, 3, 3)
    assert_within_bound(x.contiguous(memory_format=layout), w.contiguous(memory_format=layout), torch.randn(36))


@isas
@layouts
@pytest.mark.parametrize("side", [2, 4, 5])
@pytest.mark.parametrize("size", [(10, 10), (12, 25), (13, 16), (23, 14), (15, 15)], ids=str)
def test_other_windows_than_3x3(size, side, layout, isa):
    backends.set_isa(isa)
    x, w = torch.randn(8, 150, *size), torch.randn(156, 150, side, side)
    x, w = (t.contiguous(memory_format=layout) for t in (x, w))
    assert_within_bound(x, w, torch.randn(156), padding=side // 2)


@isas
@layouts
@pytest.mark.parametrize("side, dilation, padding", [(2, (3, 4), 0), (4, (2, 3), (5, 0)), (5, (1, 2), (2, 6))])
def test_dilation_of_other_windows(side, dilation, padding, layout, isa):
    backends.set_isa(isa)
    x, w = torch.randn(2, 100, 29, 33).contiguous(memory_format=layout), torch.randn(200, 100, side, side)
    assert_within_bound(x, w, torch.randn(200), padding, dilation)


@layouts
@pytest.mark.parametrize("height", range(1, 18))
def test_every_small_size_is_right_whichever_kernel_takes_it(height, layout):
    for width in range(1, 18):
        x, w = torch.randn(2, 17, height, width).contiguous(memory_format=layout), torch.randn(33, 17, 3, 3)
        ours, expected = CF.conv2d(x, w, padding=1), F.conv2d(x.double(), w.double(), padding=1)
        assert (ours - expected).abs().max() <= bound(x, w)


@layouts
@pytest.mark.parametrize("padding", range(4))
def test_padding(padding, layout):
    x = torch.randn(3, 33, 16, 16).contiguous(memory_format=layout)
    assert_within_bound(x, torch.randn(20, 33, 3, 3), padding=padding)


@isas
@layouts
@pytest.mark.parametrize(
    "size, dilation, padding",
    [
        ((28, 28), 4, 4),  # sixteen images of 7x7
        ((17, 31), (2, 3), (2, 1)),  # interleaved images of several sizes
        ((30, 52), (7, 8), (7, 8)),
        ((16, 60), (1, 12), (1, 12)),
        ((20, 120), (2, 24), 0),
    ],
    ids=str,
)
def test_dilation(size, dilation, padding, layout, isa):
    backends.set_isa(isa)
    x, w = torch.randn(2, 100, *size), torch.randn(99, 100, 3, 3)
    assert_within_bound(x.contiguous(memory_format=layout), w, torch.randn(99), padding, dilation)


@isas
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "channels, size, depth, padding, dilation",
    [
        (16, (12, 12, 12), 3, 1, 1),
        (35, (5, 12, 16), 3, (2, 1, 0), (2, 1, 2)),  # channels of a tap are padded to vectors
        (40, (4, 8, 9), 1, (0, 1, 1), 1),
        (40, (7, 12, 9), 5, (4, 1, 1), 1),  # planes of which no tap is inside
        (90, (3, 8, 8), 3, 1, 1),  # more terms than are added up at a time
    ],
    ids=str,
)
def test_volumes(channels, size, depth, padding, dilation, layout, isa):
    backends.set_isa(isa)
    x, w = torch.randn(2, channels, *size), torch.randn(40, channels, depth, 3, 3)
    if layout == "channels_last":
        x, w = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, w))
    assert_within_bound(x, w, torch.randn(40), padding, dilation)


def by_weight(g, x, w, padding=1, dilation=1, stride=1):
    """The gradients of filters shaped like w and of a bias, proven to have been made by Winograd."""
    arguments = (w.shape, *(per_axis(v, x) * n for v, n in ((stride, 1), (padding, 2), (dilation, 1))), 1, True)
    told = explain(torch.ops.convnorm.conv_by_weight, g, x, *arguments)
    assert all(k.startswith("conv_winograd") for k in told.kernels), str(told)
    return torch.ops.convnorm.conv_by_weight(g, x, *arguments)


def assert_weights_within_bound(x, w, padding=1, dilation=1, gradient=None, stride=1):
    wide = w.double().requires_grad_()
    y = of_rank(F, x)(x.double(), wide, None, stride, padding, dilation)
    g = torch.empty_like(y, dtype=torch.float32).copy_(torch.randn(y.shape) if gradient is None else gradient(y.shape))
    if not x.is_contiguous():
        g = g.contiguous(memory_format=FORMATS["channels_last"] if x.dim() == 4 else torch.channels_last_3d)
    gw, gb = by_weight(g, x, w, padding, dilation, stride)
    (expected,) = torch.autograd.grad(y, wide, g.double())
    space = tuple(range(2, x.dim()))
    largest = g.double().abs().sum((0, *space)).max()
    assert (gw - expected).abs().max() <= 64 * EPS * x.abs().max().double() * largest
    assert (gb - g.double().sum((0, *space))).abs().max() <= 64 * EPS * largest
    return gw, expected


@isas
@layouts
@pytest.mark.parametrize(
    "x, filters, padding, dilation",
    [
        ((4, 32, 16, 16), 48, 1, 1),
        ((3, 52, 23, 17), 37, 0, 1),  # nothing divides
        ((2, 64, 30, 28), 200, 3, 1),
        ((9, 100, 8, 12), 70, (2, 1), (2, 3)),
        ((6, 160, 40, 44), 150, 1, 1),  # several parts of the tiles
        ((8, 40, 50, 60), 56, 1, (2, 3)),  # of whole groups
        ((5, 200, 40, 44), 190, 1, 1),  # one part, several chunks
    ],
    ids=str,
)
def test_weights(x, filters, padding, dilation, layout, isa):
    backends.set_isa(isa)
    source = torch.randn(x).contiguous(memory_format=layout)
    assert_weights_within_bound(source, torch.randn(filters, x[1], 3, 3), padding, dilation)


@isas
@layouts
@pytest.mark.parametrize("side", [2, 4, 5])
@pytest.mark.parametrize("size, padding, dilation", [((23, 17), 0, 1), ((26, 40), (2, 3), 1), ((19, 30), 1, (2, 3))])
def test_weights_of_other_windows(size, padding, dilation, side, layout, isa):
    backends.set_isa(isa)
    x = torch.randn(6, 52, *size).contiguous(memory_format=layout)
    w = torch.randn(137, 52, side, side).contiguous(memory_format=layout)
    assert_weights_within_bound(x, w, padding, dilation)


FOLDED = [  # input, filters, stride, padding: what a stem looks like, and what it could
    ((2, 3, 224, 224), (96, 3, 7, 7), 2, 3),
    ((9, 3, 101, 130), (96, 3, 7, 7), 2, (3, 2)),  # several chunks of images
    ((2, 8, 63, 70), (160, 8, 5, 5), 2, 2),
    ((3, 8, 90, 91), (96, 8, 4, 4), 2, 1),
    ((6, 8, 43, 70), (160, 8, 12, 3), (4, 1), (0, 1)),  # only rows are folded
    ((3, 5, 70, 100), (160, 5, 4, 12), (1, 3), 0),
    ((5, 5, 103, 121), (128, 5, 6, 9), (2, 3), (2, 0)),
    ((2, 1, 97, 150), (96, 1, 16, 20), (4, 5), 0),  # pixels that no window reaches
]
STRIDED = [  # input, filters, stride, padding
    ((4, 100, 59, 60), (90, 100, 3, 3), 2, 1),  # the usual one: phases of four, two and one tap
    ((4, 96, 40, 43), (140, 96, 4, 4), 2, 1),  # all phases alike; by input half of them a pixel further on
    ((4, 64, 41, 50), (96, 64, 5, 5), 2, (2, 0)),
    ((4, 40, 61, 64), (100, 40, 7, 7), 3, 2),
    ((4, 64, 40, 70), (96, 64, 3, 6), (1, 2), 1),
    ((4, 64, 70, 40), (96, 64, 9, 3), (3, 1), (4, 1)),
    ((2, 280, 40, 40), (128, 280, 3, 3), 2, 1),  # by filters, several blocks of the sum
]


@isas
@layouts
@pytest.mark.parametrize("x, filters, stride, padding", FOLDED + STRIDED, ids=str)
def test_strided_windows(x, filters, stride, padding, layout, isa):
    backends.set_isa(isa)
    source, w = (torch.randn(shape).contiguous(memory_format=layout) for shape in (x, filters))
    assert_within_bound(source, w, torch.randn(filters[0]), padding, 1, stride)
    assert_weights_within_bound(source, w, padding, 1, None, stride)


@isas
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_strided_volumes(layout, isa):
    backends.set_isa(isa)
    x, w = torch.randn(2, 37, 6, 40, 39), torch.randn(100, 37, 3, 3, 3)
    if layout == "channels_last":
        x, w = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, w))
    assert_within_bound(x, w, torch.randn(100), 1, 1, (1, 2, 2))
    assert_weights_within_bound(x, w, 1, 1, None, (2, 2, 2))


@isas
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last_3d], ids=["contiguous", "channels_last"]
)
@pytest.mark.parametrize(
    "channels, depth, padding, dilation", [(32, 3, 1, 1), (35, 3, (2, 1, 0), (2, 1, 2)), (64, 1, 1, 1)]
)
def test_weights_of_volumes(channels, depth, padding, dilation, layout, isa):
    backends.set_isa(isa)
    source = torch.randn(2, channels, 6, 16, 16).contiguous(memory_format=layout)
    assert_weights_within_bound(source, torch.randn(40, channels, depth, 3, 3), padding, dilation)


@pytest.mark.parametrize("images", [1, 32])
@pytest.mark.parametrize(
    "kind", ["normal", "one sign", "offset", "constant", "one pixel", "checkerboard", "heavy tails"]
)
def test_error_of_weights_by_images(images, kind):
    """Measured, of the bound's 64: at most 8 here, and 15 over 50,000 tiles."""
    x, gradient = torch.randn(images, 64, 20, 20), torch.randn
    board = (-1.0) ** (torch.arange(20) + torch.arange(20)[:, None])
    if kind == "one sign":
        x, gradient = x.abs(), torch.rand
    if kind == "offset":
        x = x + 100
    if kind == "constant":
        x, gradient = torch.full_like(x, 1.1), lambda shape: torch.full(shape, 0.37)
    if kind == "one pixel":
        gradient = lambda shape: 1.7 * (torch.arange(torch.Size(shape).numel()) % 400 == 63).view(shape)  # noqa: E731
    if kind == "checkerboard":
        x, gradient = 1.3 * board.expand_as(x).contiguous(), lambda shape: 0.37 * board.expand(shape)
    if kind == "heavy tails":
        x, gradient = x**5, lambda shape: torch.randn(shape) ** 5
    gw, expected = assert_weights_within_bound(x, torch.randn(32, 64, 3, 3), gradient=gradient)
    if kind == "normal":
        assert (gw - expected).pow(2).mean().sqrt() <= 10 * 2.0**-23 * expected.pow(2).mean().sqrt()


@layouts
def test_weights_have_the_same_bits_for_any_number_of_threads(layout):
    x, w = torch.randn(4, 70, 33, 30).contiguous(memory_format=layout), torch.randn(90, 70, 3, 3)
    g = torch.randn(4, 90, 33, 30).contiguous(memory_format=layout)
    results = []
    for threads in (1, 2, 3, 4, 5):  # of the four parts of its tiles, whole ones or a share of each
        torch.set_num_threads(threads)
        results.append(by_weight(g, x, w))
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            assert_same(a, e)


def test_strides_do_not_matter_to_weights():
    x, g, w = torch.randn(2, 40, 15, 18), torch.randn(2, 40, 15, 18), torch.randn(40, 40, 3, 3)
    plain = by_weight(g, x, w)
    wide = torch.randn(2, 40, 15, 36).index_copy_(3, torch.arange(0, 36, 2), x)[..., ::2]
    turned = g.transpose(2, 3).contiguous().transpose(2, 3)
    for a, e in zip(by_weight(turned, wide, w), plain, strict=True):
        assert_same(a, e)


SIDES = [(3, 16), (3, 64), (3, 256), (3, 512), (2, 256), (4, 16), (4, 512), (5, 16), (5, 512)]


@pytest.mark.parametrize("side, channels", SIDES)
@pytest.mark.parametrize("kind", ["normal", "one sign", "offset", "constant", "one tap", "checkerboard", "heavy tails"])
def test_error_by_channels(side, channels, kind):
    """Measured, of the bound's 64 + C / 2: at most 16, of 2x2 windows, and 10 of the others."""
    x, w = torch.randn(1, channels, 20, 20), torch.randn(64, channels, side, side)
    board = (-1.0) ** (torch.arange(20) + torch.arange(20)[:, None])
    if kind == "one sign":
        x, w = x.abs(), w.abs()
    if kind == "offset":
        x = x + 100
    if kind == "constant":
        x, w = torch.full_like(x, 1.1), torch.full_like(w, 0.37)
    if kind == "one tap":
        w = torch.zeros_like(w)
        w[:, 3, -1, -1] = 1.7
    if kind == "checkerboard":
        x, w = 1.3 * board.expand_as(x), 0.37 * board[:side, :side].expand_as(w)
    if kind == "heavy tails":
        x, w = x**5, w**5
    assert_within_bound(x, w, padding=side // 2)


def test_mean_error_is_at_most_ten_units_of_the_mean_output():
    """Measured: 4 to 8 units of 2^-23 from 16 to 512 channels; the direct kernel has 1 to 2, torch 2 to 10."""
    for side, channels in SIDES:
        x, w = torch.randn(2, channels, 20, 20), torch.randn(64, channels, side, side)
        expected = F.conv2d(x.double(), w.double(), padding=1)
        fast = CF.conv2d(x, w, padding=1)
        with backends.using_winograd(False):
            assert not torch.equal(fast, CF.conv2d(x, w, padding=1))
        assert (fast - expected).pow(2).mean().sqrt() <= 10 * 2.0**-23 * expected.pow(2).mean().sqrt()


THREADED = [((4, 32, 32, 24, 24), 1), ((1, 300, 48, 13, 11), 1), ((9, 16, 16, 30, 7), 1), ((4, 70, 80, 60, 49), 2)]


@pytest.mark.parametrize("shape, stride", THREADED, ids=str)
@layouts
def test_same_bits_for_any_number_of_threads(shape, stride, layout):
    n, c, k, *size = shape
    x, w, b = torch.randn(n, c, *size).contiguous(memory_format=layout), torch.randn(k, c, 3, 3), torch.randn(k)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        results.append(conv(x, w, b, stride=stride))
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            assert_same(a, e)


def test_strides_do_not_matter():
    x, w = torch.randn(2, 20, 15, 18), torch.randn(24, 20, 3, 3)
    plain, _ = assert_within_bound(x, w)
    views = {
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "slice": torch.randn(2, 20, 15, 36).index_copy_(3, torch.arange(0, 36, 2), x)[..., ::2],
        "channel slice": torch.cat([x, x], 1)[:, 20:],
        "images last": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }
    for name, view in views.items():
        assert not view.is_contiguous() and torch.equal(view, x)
        assert_same(CF.conv2d(view, w, padding=1), plain, name)
    expanded = x[:, :1].expand(2, 20, 15, 18)
    assert_same(CF.conv2d(expanded, w, padding=1), CF.conv2d(expanded.contiguous(), w, padding=1))
    for x_format in FORMATS.values():
        for w_format in FORMATS.values():
            mixed = CF.conv2d(x.contiguous(memory_format=x_format), w.contiguous(memory_format=w_format), padding=1)
            assert_same(mixed, plain)


REFUSALS = [  # reason, input, weight, arguments
    ("2x2 to 5x5 taps", (4, 32, 32, 32), (32, 32, 6, 6), {}),
    ("2x2 to 5x5 taps at every phase", (4, 32, 32, 32), (32, 32, 3, 5), {}),
    ("at every phase of the stride", (4, 3, 64, 64), (64, 3, 11, 11), {"stride": 2}),
    ("dilated window: needs stride 1", (4, 64, 64, 64), (64, 64, 3, 3), {"stride": 2, "dilation": 2}),
    ("divides 24", (4, 64, 64, 64), (64, 64, 3, 3), {"dilation": 5, "padding": 5}),
    ("one group", (4, 32, 32, 32), (32, 16, 3, 3), {"groups": 2}),
    ("too few channels", (4, 3, 224, 224), (64, 3, 3, 3), {}),
    ("or tiles", (1, 64, 2, 2), (64, 64, 3, 3), {"padding": 1}),
    ("channels times phases", (1, 9, 16, 16), (6, 9, 7, 7), {"stride": 2}),
    ("a dilated window\n", (4, 3, 64, 64), (64, 3, 7, 7), {"stride": 2, "dilation": 2}),
    ("second level cache", (4, 1024, 64, 64), (16, 1024, 3, 3), {"stride": 2}),
    ("one plane", (1, 3, 2, 24, 24), (6, 3, 2, 7, 7), {"stride": 2}),
]


@pytest.mark.parametrize("reason, input, weight, arguments", REFUSALS, ids=[r[0] for r in REFUSALS])
def test_what_is_refused_says_why(reason, input, weight, arguments):
    told = explain(CF.conv2d if len(input) == 4 else CF.conv3d, torch.randn(input), torch.randn(weight), **arguments)
    assert told.kernels[0].startswith("conv_igemm") and reason in str(told)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_float32_only(dtype):
    told = explain(CF.conv2d, torch.randn(1, 32, 32, 32, dtype=dtype), torch.randn(32, 32, 3, 3, dtype=dtype))
    assert told.kernels[0].startswith(("conv_igemm", "conv_tiles"))
    assert "float32 only" in str(told) or told.kernels[0].startswith("conv_tiles")


def test_the_switch():
    x, w = torch.randn(1, 32, 32, 32), torch.randn(32, 32, 3, 3)
    assert explain(CF.conv2d, x, w).kernels[0].startswith("conv_winograd")
    with backends.using_winograd(False):
        assert not backends.winograd()
        told = explain(CF.conv2d, x, w)
        assert told.kernels[0].startswith("conv_igemm") and "switched off" in str(told)
    assert backends.winograd()


@pytest.mark.parametrize("value, enabled", [("0", False), ("1", True)])
def test_the_environment_switches_it_off(value, enabled):
    program = "import convnorm; print(convnorm.backends.winograd())"
    environment = os.environ | {"CONVNORM_WINOGRAD": value}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == str(enabled), done.stderr
