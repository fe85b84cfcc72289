"""Convolution in one, two and three dimensions."""

import math

import torch
import torch.nn.functional as F

import convnorm.functional as CF
from convnorm.ops.conv import output_size

from . import Case, OpSpec


def case(reason, input, weight, bias=True, small=False, **kwargs):
    """``weight`` is (out channels, channels per group, *kernel)."""
    shapes = {"input": input, "weight": weight} | ({"bias": weight[:1]} if bias else {})
    return Case(reason, shapes, kwargs, small)


CASES = [
    # The ordinary problem in each number of dimensions.
    case("1d", (2, 3, 11), (4, 3, 3), padding=1, small=True),
    case("2d", (2, 3, 7, 6), (4, 3, 3, 3), padding=1, small=True),
    case("3d", (1, 2, 4, 5, 4), (3, 2, 2, 3, 2), padding=(1, 0, 1), small=True),
    case("no bias", (2, 3, 8, 8), (4, 3, 3, 3), bias=False),
    # Geometry.
    case(
        "stride, dilation, groups and uneven padding at once",
        (1, 4, 9, 8),
        (4, 2, 3, 2),
        stride=(2, 1),
        padding=(2, 1),
        dilation=(1, 2),
        groups=2,
        small=True,
    ),
    case("stride 2", (2, 8, 14, 14), (16, 8, 3, 3), stride=2, padding=1),
    case("stride larger than the kernel skips input", (2, 3, 13, 16), (4, 3, 2, 2), stride=(3, 4)),
    case("stride leaves a remainder that no window reaches", (1, 3, 10, 11), (4, 3, 3, 3), stride=(3, 4)),
    case("dilation 2", (2, 4, 12, 12), (8, 4, 3, 3), dilation=2, padding=2),
    case("padding same odd kernel", (2, 3, 9, 9), (4, 3, 5, 3), padding="same"),
    case("padding same even kernel pads one more behind", (2, 3, 9, 8), (4, 3, 4, 2), padding="same"),
    case("padding same even kernel dilated", (1, 3, 12), (4, 3, 4), padding="same", dilation=3),
    case("padding valid", (2, 3, 9, 9), (4, 3, 3, 3), padding="valid"),
    case("padding beyond the reach gives outputs of bias alone", (1, 3, 4, 4), (4, 3, 3, 3), padding=5),
    case("kernel as large as the input", (2, 3, 6, 5), (4, 3, 6, 5)),
    case("kernel fits only thanks to padding", (1, 2, 2, 2), (3, 2, 5, 5), padding=2),
    case("wide flat kernel", (1, 3, 5, 40), (4, 3, 1, 9), padding=(0, 4)),
    case("large kernel", (1, 4, 20, 20), (4, 4, 11, 11), padding=5),
    case("1x1", (2, 24, 9, 7), (40, 24, 1, 1)),
    case("1x1 stride 2", (2, 16, 9, 7), (8, 16, 1, 1), stride=2),
    case("single pixel", (1, 8, 1, 1), (8, 8, 1, 1)),
    case(
        "3d stride and dilation",
        (2, 3, 7, 9, 8),
        (4, 3, 3, 2, 3),
        stride=(2, 1, 2),
        padding=1,
        dilation=(1, 2, 1),
    ),
    case("1d long with a wide kernel", (2, 16, 300), (24, 16, 9), padding=4),
    # Sizes.
    case("channels odd on both sides", (2, 33, 10, 11), (65, 33, 3, 3), padding=1),
    case("few input channels, large kernel: the stem", (1, 3, 30, 30), (16, 3, 7, 7), stride=2, padding=3),
    case("one channel each way", (2, 1, 8, 8), (1, 1, 3, 3), padding=1, small=True),
    case("many channels: the reduction is blocked", (1, 384, 5, 5), (32, 384, 3, 3), padding=1),
    case("many filters", (1, 16, 6, 6), (200, 16, 3, 3), padding=1),
    case("3x3 at Winograd sizes", (2, 32, 14, 14), (32, 32, 3, 3), padding=1),
    case("3x3 at Winograd sizes with ragged tiles", (1, 40, 13, 11), (36, 40, 3, 3), padding=1),
    case("many images of a tiny map", (33, 16, 2, 3), (16, 16, 3, 3), padding=1),
    case("empty batch", (0, 3, 8, 8), (4, 3, 3, 3), padding=1),
    # Groups.
    case("groups", (2, 12, 9, 9), (18, 4, 3, 3), padding=1, groups=3),
    case("groups of eight, and inputs that no window reaches", (2, 16, 9, 9), (16, 8, 1, 1), stride=2, groups=2),
    case("groups on a single pixel", (1, 2, 1), (4, 1, 2), stride=2, padding=1, groups=2),
    # Depthwise: kernels of its own. Vectors lie along rows (contiguous) or over channels (channels_last).
    case("depthwise 3x3", (2, 20, 11, 13), (20, 1, 3, 3), padding=1, groups=20, small=True),
    case("depthwise stride 2", (2, 16, 12, 12), (16, 1, 3, 3), stride=2, padding=1, groups=16),
    case("depthwise stride 2, odd sizes", (2, 24, 15, 17), (24, 1, 5, 5), stride=2, padding=2, groups=24),
    case("depthwise stride 3 has three phases", (1, 9, 14, 16), (9, 1, 3, 4), stride=3, padding=1, groups=9),
    case("depthwise dilated", (1, 16, 12, 12), (16, 1, 3, 3), dilation=2, padding=2, groups=16),
    case(
        "depthwise stride and dilation",
        (2, 12, 19, 20),
        (12, 1, 3, 5),
        stride=2,
        dilation=(3, 2),
        padding=3,
        groups=12,
    ),
    case("depthwise 5x5", (1, 18, 28, 28), (18, 1, 5, 5), padding=2, groups=18),
    case("depthwise 7x7", (1, 24, 14, 14), (24, 1, 7, 7), padding=3, groups=24),
    case("depthwise 7x7 on a plane smaller than it", (2, 10, 5, 4), (10, 1, 7, 7), padding=3, groups=10),
    case("depthwise asymmetric", (1, 9, 10, 21), (9, 1, 1, 7), stride=(1, 2), padding=(0, 3), groups=9, bias=False),
    case("depthwise window without a kernel of its own", (1, 10, 16, 15), (10, 1, 6, 4), padding=2, groups=10),
    case("depthwise rows cut into strips", (1, 2, 70, 300), (2, 1, 3, 3), padding=1, groups=2),
    case("depthwise padding beyond the reach", (1, 8, 4, 4), (8, 1, 3, 3), padding=5, groups=8),
    case("depthwise without padding", (2, 8, 7, 7), (8, 1, 7, 7), groups=8),
    case("depthwise, two filters per channel", (2, 6, 9, 9), (12, 1, 3, 3), padding=1, groups=6, small=True),
    case("depthwise 1d", (2, 10, 30), (10, 1, 5), padding=2, groups=10),
    case("depthwise 1d, long and wide", (1, 3, 700), (3, 1, 31), padding=15, groups=3),
    case("depthwise 1d stride 2", (2, 5, 101), (5, 1, 9), stride=2, padding=4, groups=5),
    case("depthwise 3d", (1, 8, 5, 6, 7), (8, 1, 3, 3, 3), padding=1, groups=8),
    case("depthwise 3d stride 2", (1, 9, 6, 7, 9), (9, 1, 3, 3, 3), stride=2, padding=1, groups=9),
    # One less, exactly, and one more than a vector and than the 16-wide tile.
    *(case(f"{k} filters at the vector edge", (1, 5, 6, 6), (k, 5, 3, 3), padding=1) for k in (7, 8, 9, 15, 16, 17)),
    *(case(f"{c} channels at the vector edge", (1, c, 6, 6), (6, c, 3, 3), padding=1) for c in (7, 8, 9, 15, 16, 17)),
    *(case(f"width {w} at the vector edge", (1, 4, 3, w), (8, 4, 3, 3), padding=1) for w in (7, 8, 9, 15, 16, 17)),
    *(
        case(f"depthwise {c} channels at the vector edge", (1, c, 5, 5), (c, 1, 3, 3), padding=1, groups=c)
        for c in (1, 7, 8, 9, 15, 16, 17)
    ),
    *(
        case(f"depthwise width {w} at the vector edge", (2, 3, 8, w), (3, 1, 3, 3), padding=1, groups=3)
        for w in (1, 7, 8, 9, 15, 16, 17)
    ),
]


def ours(input, weight, **kwargs):
    return getattr(CF, f"conv{input.dim() - 2}d")(input, weight, **kwargs)


def theirs(input, weight, **kwargs):
    return getattr(F, f"conv{input.dim() - 2}d")(input, weight, **kwargs)


def geometry(size, kernel, stride=1, padding=0, dilation=1, groups=1):
    """stride, padding (low sides, then high sides), dilation, groups as the raw ops take them."""
    n = len(kernel)
    stride, dilation = ([v] * n if isinstance(v, int) else list(v) for v in (stride, dilation))
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return stride, [t // 2 for t in total] + [t - t // 2 for t in total], dilation, groups
    padding = 0 if padding == "valid" else padding
    return stride, ([padding] * n if isinstance(padding, int) else list(padding)) * 2, dilation, groups


def output_shape(case):
    x, w = case.shapes["input"], case.shapes["weight"]
    return [x[0], w[0], *output_size(x[2:], w[2:], *geometry(x[2:], w[2:], **case.kwargs)[:3])]


def raw(input, weight, bias=None, **kwargs):
    g = geometry(input.shape[2:], weight.shape[2:], **kwargs)
    ops = torch.ops.convnorm
    grad = torch.ones_like(ops.conv_forward(input, weight, bias, *g))
    return [
        (ops.conv_forward.default, (input, weight, bias, *g)),
        (ops.conv_by_input.default, (grad, weight, list(input.shape), *g)),
        (ops.conv_by_weight.default, (grad, input, list(weight.shape), *g, bias is not None)),
    ]


def flops(case):
    """Two per multiply-add; each of the backward directions has as many."""
    return 2 * math.prod(output_shape(case)) * math.prod(case.shapes["weight"][1:])


def moved(case, itemsize):
    return itemsize * (sum(math.prod(s) for s in case.shapes.values()) + math.prod(output_shape(case)))


SPEC = OpSpec(
    name="conv",
    cases=CASES,
    ours=ours,
    theirs=theirs,
    grads=("input", "weight", "bias"),
    raw=raw,
    flops=flops,
    bytes=moved,
    exact=True,
)


def transposed(reason, input, weight, bias=True, small=False, **kwargs):
    """``weight`` is (channels, out channels per group, *kernel)."""
    shapes = {"input": input, "weight": weight}
    return Case(reason, shapes | ({"bias": (weight[1] * kwargs.get("groups", 1),)} if bias else {}), kwargs, small)


TRANSPOSED = [
    transposed("doubles an image", (2, 8, 7, 7), (8, 6, 2, 2), stride=2),
    transposed("odd sizes by output_padding", (2, 5, 6, 5), (5, 7, 3, 3), stride=2, padding=1, output_padding=1),
    transposed("stride 1 is a convolution", (1, 4, 6, 7), (4, 3, 3, 3), padding=1, small=True, bias=False),
    transposed("groups", (2, 6, 5, 5), (6, 4, 3, 3), stride=2, groups=3),
    transposed("depthwise", (1, 9, 6, 6), (9, 1, 4, 4), stride=2, padding=1, groups=9),
    transposed("stride above the kernel leaves gaps", (1, 3, 4, 4), (3, 2, 2, 2), stride=3),
    transposed("output_padding beyond the stride", (1, 3, 5, 5), (3, 4, 2, 2), dilation=3, output_padding=2),
    transposed("1d", (2, 6, 20), (6, 5, 4), stride=2, padding=1),
    transposed("3d", (1, 4, 3, 4, 5), (4, 3, 2, 2, 2), stride=2),
    transposed("a batch of none", (0, 3, 4, 4), (3, 2, 2, 2), bias=False, stride=2),
]


def transposed_ours(input, weight, **kwargs):
    return getattr(CF, f"conv_transpose{input.dim() - 2}d")(input, weight, **kwargs)


def transposed_theirs(input, weight, **kwargs):
    return getattr(F, f"conv_transpose{input.dim() - 2}d")(input, weight, **kwargs)


def transposed_raw(input, weight, bias=None, output_padding=0, **kwargs):
    out = transposed_theirs(input, weight, output_padding=0, **kwargs)
    args = (input, weight, list(out.shape), *geometry(out.shape[2:], weight.shape[2:], **kwargs))
    return [(torch.ops.convnorm.conv_by_input.default, args)]


def transposed_flops(case):
    return 2 * math.prod(case.shapes["input"]) * math.prod(case.shapes["weight"][1:])


def transposed_moved(case, itemsize):
    out = transposed_theirs(*(torch.empty(case.shapes[k], device="meta") for k in ("input", "weight")), **case.kwargs)
    return itemsize * (sum(math.prod(s) for s in case.shapes.values()) + out.numel())


SPECS = [
    SPEC,
    OpSpec(
        name="conv_transpose",
        cases=TRANSPOSED,
        ours=transposed_ours,
        theirs=transposed_theirs,
        grads=("input", "weight", "bias"),
        raw=transposed_raw,
        flops=transposed_flops,
        bytes=transposed_moved,
        exact=True,
    ),
]
