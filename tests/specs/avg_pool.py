"""Average pooling in one, two and three dimensions, plain and adaptive."""

import math
from itertools import chain

import torch
import torch.nn.functional as F

import convnorm.functional as CF
from convnorm.ops.max_pool import output_size as pooled_size

from . import Case, OpSpec

# --- plain --------------------------------------------------------------------------------------------------


def case(reason, input, kernel_size, small=False, **kwargs):
    return Case(reason, {"input": input}, {"kernel_size": kernel_size} | kwargs, small)


CASES = [
    # The ordinary problem in each number of dimensions.
    case("1d", (2, 3, 11), 3, padding=1, small=True),
    case("2d", (2, 3, 7, 6), 3, padding=1, stride=2, small=True),
    case("3d", (1, 2, 4, 5, 4), (2, 3, 2), stride=(1, 2, 2), padding=(1, 1, 0), small=True),
    case("channels fill vectors", (1, 9, 6, 5), 3, stride=2, padding=1, count_include_pad=False, small=True),
    case("halving", (2, 20, 28, 28), 2),
    case("the Inception pool", (2, 24, 14, 14), 3, stride=1, padding=1),
    case("the ResNet-D pool", (2, 16, 15, 15), 2, ceil_mode=True, count_include_pad=False),
    # Geometry.
    case("ceil_mode with padding", (2, 3, 8, 9), 3, stride=2, padding=1, ceil_mode=True, small=True),
    case("ceil_mode, no padding in it", (2, 9, 8, 9), 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    case("ceil_mode drops a window", (1, 2, 6, 7), 2, stride=3, padding=1, ceil_mode=True),
    case("ceil_mode with windows beyond the padding", (1, 9, 7, 10), 4, stride=3, padding=2, ceil_mode=True),
    case("divisor_override", (2, 3, 8, 9), 3, stride=2, padding=1, divisor_override=5, small=True),
    case("negative divisor_override in 3d", (1, 9, 5, 6, 7), 2, divisor_override=-3),
    case("stride larger than the kernel skips input", (2, 3, 13, 16), 2, stride=(3, 4)),
    case("stride leaves a remainder that no window reaches", (1, 3, 10, 15), (3, 2), stride=(3, 2)),
    case("strides that differ", (2, 5, 11, 12), (3, 2), stride=(1, 3), padding=(1, 0)),
    case("overlap with stride 3", (1, 4, 16, 17), 5, stride=3, padding=2),
    case("1x1", (2, 3, 5, 6), 1),
    case("even kernel padded", (2, 4, 9, 10), 4, stride=2, padding=2, count_include_pad=False),
    case("large kernel of stride 1: sums of sums", (1, 8, 23, 23), 19, stride=1, padding=9),
    case("tall window over one column", (2, 3, 60, 1), (16, 1), stride=(4, 1)),
    case("global", (2, 24, 7, 7), 7),
    case("global and large: sums of sums", (1, 9, 40, 41), (40, 41)),
    case("3d stride", (2, 9, 7, 9, 8), (3, 2, 3), stride=(2, 1, 2), padding=1, count_include_pad=False),
    # Sizes.
    case("row in several pieces", (1, 2, 3, 530), 3, padding=1, stride=1),
    case("a window wider than a piece", (1, 9, 2, 700), (1, 600), stride=50),
    case("1d long", (2, 3, 1500), 4, stride=2),
    case("many images of a tiny map", (33, 16, 2, 3), 2, stride=1),
    case("single pixel", (1, 8, 1, 1), 1),
    case("empty batch", (0, 3, 8, 8), 3),
    *(
        case(f"{c} channels at the vector edge", (1, c, 6, 7), 3, stride=2, padding=1)
        for c in (3, 4, 5, 7, 8, 15, 16, 17, 33, 70, 137)
    ),
    *(case(f"width {w} at the vector edge", (1, 2, 4, w), 3, stride=1, padding=1) for w in (1, 2, 7, 8, 9, 15, 16, 17)),
]


def by_dimension(module, stem):
    return lambda input, **kwargs: getattr(module, f"{stem}{input.dim() - 2}d")(input, **kwargs)


def theirs(input, **kwargs):
    """torch has no 16-bit avg_pool3d on the CPU: there its float32 result is rounded once."""
    if input.dim() == 5 and input.dtype.itemsize == 2:
        return F.avg_pool3d(input.float(), **kwargs).to(input.dtype)
    return by_dimension(F, "avg_pool")(input, **kwargs)


def geometry(n, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    """kernel, stride and padding, which the raw ops take as one list, and the arguments that follow it."""
    values = (kernel_size, kernel_size if stride is None else stride, padding)
    window = [[v] * n if isinstance(v, int) else list(v) for v in values]
    return [*window, ceil_mode, count_include_pad, divisor_override]


def raw(input, **kwargs):
    ops, (*window, ceil_mode, include_pad, divisor) = torch.ops.convnorm, geometry(input.dim() - 2, **kwargs)
    rest = list(chain(*window)), ceil_mode, include_pad, divisor
    grad = ops.avg_pool_forward(input, *rest)
    last = not input.is_contiguous()
    return [
        (ops.avg_pool_forward.default, (input, *rest)),
        (ops.avg_pool_backward.default, (grad, list(input.shape), *rest, last)),
    ]


def output_shape(case):
    n, c, *spatial = case.shapes["input"]
    kernel, stride, padding, ceil_mode, *_ = geometry(len(spatial), **case.kwargs)
    return [n, c, *pooled_size(spatial, kernel, stride, padding, [1] * len(spatial), ceil_mode)]


def flops(case):
    """One addition per output and position of the window."""
    return math.prod(output_shape(case)) * math.prod(geometry(len(case.shapes["input"]) - 2, **case.kwargs)[0])


def moved(case, itemsize):
    return itemsize * (math.prod(case.shapes["input"]) + math.prod(output_shape(case)))


SPEC = OpSpec(
    name="avg_pool",
    cases=CASES,
    ours=by_dimension(CF, "avg_pool"),
    theirs=theirs,
    grads=("input",),
    raw=raw,
    flops=flops,
    bytes=moved,
)

# --- adaptive -----------------------------------------------------------------------------------------------


def adaptive_case(reason, input, output_size, small=False):
    return Case(reason, {"input": input}, {"output_size": output_size}, small)


ADAPTIVE_CASES = [
    adaptive_case("1d", (2, 3, 11), 4, small=True),
    adaptive_case("2d of windows that overlap", (2, 3, 7, 10), (4, 7), small=True),
    adaptive_case("3d", (1, 2, 4, 5, 6), (2, 3, 4), small=True),
    adaptive_case("channels fill vectors", (1, 9, 6, 5), (4, 3), small=True),
    adaptive_case("the mean of each plane", (2, 24, 7, 7), 1, small=True),
    adaptive_case("the mean of a large plane: sums of sums", (1, 9, 70, 61), 1),
    adaptive_case("the mean of a volume", (2, 9, 5, 6, 7), 1),
    adaptive_case("VGG's 7x7 from 14", (2, 16, 14, 14), 7),
    adaptive_case("VGG's 7x7 from 10", (2, 16, 10, 10), 7),
    adaptive_case("larger than the input", (2, 9, 3, 4), (7, 9), small=True),
    adaptive_case("the input's own size", (2, 9, 5, 6), (5, 6)),
    adaptive_case("rows are merged, columns are not", (2, 9, 6, 20), (1, 4)),
    adaptive_case("wide", (1, 2, 3, 700), (2, 300)),
    adaptive_case("one window wider than a piece", (1, 9, 2, 900), (2, 2)),
    adaptive_case("empty batch", (0, 3, 8, 8), 3),
    *(adaptive_case(f"{c} channels at the vector edge", (1, c, 9, 7), 4) for c in (4, 7, 8, 15, 16, 17, 33)),
]


def adaptive_raw(input, output_size):
    ops, n = torch.ops.convnorm, input.dim() - 2
    sizes = [output_size] * n if isinstance(output_size, int) else list(output_size)
    last = not input.is_contiguous()
    return [
        (ops.adaptive_avg_pool_forward.default, (input, sizes)),
        (ops.adaptive_avg_pool_backward.default,
         (ops.adaptive_avg_pool_forward(input, sizes), list(input.shape), last)),
    ]  # fmt: skip


def adaptive_output_shape(case):
    n, c, *spatial = case.shapes["input"]
    size = case.kwargs["output_size"]
    return [n, c, *([size] * len(spatial) if isinstance(size, int) else size)]


ADAPTIVE = OpSpec(
    name="adaptive_avg_pool",
    cases=ADAPTIVE_CASES,
    ours=by_dimension(CF, "adaptive_avg_pool"),
    theirs=by_dimension(F, "adaptive_avg_pool"),
    grads=("input",),
    raw=adaptive_raw,
    flops=lambda case: math.prod(case.shapes["input"]),
    bytes=lambda case, itemsize: itemsize * (math.prod(case.shapes["input"]) + math.prod(adaptive_output_shape(case))),
)

SPECS = [SPEC, ADAPTIVE]
