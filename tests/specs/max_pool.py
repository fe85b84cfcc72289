"""Max pooling in one, two and three dimensions: windows, adaptive windows, and un-pooling."""

import math
from itertools import chain

import torch
import torch.nn.functional as F

import convnorm.functional as CF
from convnorm.ops.max_pool import INDICES, NOTHING, OFFSETS, output_size

from . import Case, OpSpec, arrange, random_inputs


def case(reason, input, kernel_size, small=False, **kwargs):
    return Case(reason, {"input": input}, {"kernel_size": kernel_size} | kwargs, small)


CASES = [
    # The ordinary problem in each number of dimensions.
    case("1d", (2, 3, 11), 3, padding=1, small=True),
    case("2d", (2, 3, 7, 6), 3, padding=1, stride=2, small=True),
    case("3d", (1, 2, 4, 5, 4), (2, 3, 2), stride=(1, 2, 2), padding=(1, 1, 0), small=True),
    case("channels fill vectors", (1, 9, 6, 5), 3, stride=2, padding=1, small=True),
    case("the ResNet stem", (2, 16, 28, 28), 3, stride=2, padding=1),
    case("the VGG and LeNet pool", (2, 20, 28, 28), 2),
    case("the Inception pool", (2, 24, 14, 14), 3, stride=1, padding=1),
    # Geometry.
    case("ceil_mode", (2, 3, 8, 9), 3, stride=2, ceil_mode=True, small=True),
    case(
        "ceil_mode drops a window that starts in the padding",
        (1, 2, 6, 7),
        2,
        stride=3,
        padding=1,
        ceil_mode=True,
    ),
    case("ceil_mode where floor gives no output", (1, 2, 2, 3), 2, stride=2, dilation=2, ceil_mode=True),
    case("dilation", (2, 3, 12, 13), 3, dilation=2, padding=1),
    case("dilation and stride share a divisor: one phase", (2, 3, 12, 20), 3, dilation=2, stride=2, padding=1),
    case("dilation 3 and stride 2", (1, 3, 14, 17), 3, dilation=3, stride=2, padding=1),
    case("stride larger than the kernel skips input", (2, 3, 13, 16), 2, stride=(3, 4)),
    case("stride leaves a remainder that no window reaches", (1, 3, 10, 15), (3, 2), stride=(3, 2)),
    case("strides that differ", (2, 5, 11, 12), (3, 2), stride=(1, 3), padding=(1, 0)),
    case("overlap with stride 3", (1, 4, 16, 17), 5, stride=3, padding=2),
    case("1x1", (2, 3, 5, 6), 1),
    case("1x1 stride 2", (2, 3, 5, 6), 1, stride=2),
    case("even kernel padded", (2, 4, 9, 10), 4, stride=2, padding=2),
    case("large kernel of stride 1", (1, 8, 13, 13), 9, stride=1, padding=4),
    case("tall window over one column", (2, 3, 60, 1), (16, 1), stride=(4, 1)),
    case("global", (2, 24, 7, 7), 7),
    case("window of 289 positions: offsets of four bytes", (2, 9, 20, 19), 17, stride=2, padding=3, small=True),
    case("3d stride and dilation", (2, 9, 7, 9, 8), (3, 2, 3), stride=(2, 1, 2), padding=1, dilation=(1, 2, 1)),
    # Sizes.
    case("row in two blocks of columns", (1, 2, 3, 530), 3, padding=1, stride=1),
    case("1d long", (2, 3, 1500), 4, stride=2),
    case("many images of a tiny map", (33, 16, 2, 3), 2, stride=1),
    case("single pixel", (1, 8, 1, 1), 1),
    case("empty batch", (0, 3, 8, 8), 3),
    *(
        case(f"{c} channels at the vector edge", (1, c, 6, 7), 3, stride=2, padding=1)
        for c in (3, 4, 5, 7, 8, 15, 16, 17, 33)
    ),
    *(case(f"width {w} at the vector edge", (1, 2, 4, w), 3, stride=1, padding=1) for w in (1, 2, 7, 8, 9, 15, 16, 17)),
    *(case(f"width {w} at the vector edge of stride 2", (1, 2, 4, w), 2) for w in (2, 3, 15, 16, 17, 31, 33, 34)),
]


def ours(input, **kwargs):
    return getattr(CF, f"max_pool{input.dim() - 2}d")(input, **kwargs)


def theirs(input, **kwargs):
    return getattr(F, f"max_pool{input.dim() - 2}d")(input, **kwargs)


def geometry(n, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """kernel, stride, padding, dilation, which the raw ops take as one list, and ceil_mode."""
    values = (kernel_size, kernel_size if stride is None else stride, padding, dilation)
    return [[v] * n if isinstance(v, int) else list(v) for v in values], ceil_mode


def raw(input, **kwargs):
    ops = torch.ops.convnorm
    parts, ceil_mode = geometry(input.dim() - 2, **kwargs)
    window, calls = list(chain(*parts)), []
    for record in (NOTHING, OFFSETS, INDICES):
        calls.append((ops.max_pool_forward.default, (input, window, ceil_mode, record)))
        if record != NOTHING:
            grad, argmax = ops.max_pool_forward(input, window, ceil_mode, record)
            calls.append((ops.max_pool_backward.default, (grad, argmax, list(input.shape), window)))
            calls.append((ops.max_pool_gather.default, (input, argmax, window)))
    return calls


def output_shape(case):
    n, c, *spatial = case.shapes["input"]
    window, ceil_mode = geometry(len(spatial), **case.kwargs)
    return [n, c, *output_size(spatial, *window, ceil_mode)]


def flops(case):
    """One comparison per output and position of the window."""
    positions = math.prod(geometry(len(case.shapes["input"]) - 2, **case.kwargs)[0][0])
    return math.prod(output_shape(case)) * positions


def moved(case, itemsize):
    """Input, output, and a byte per output for the backward."""
    return itemsize * math.prod(case.shapes["input"]) + (itemsize + 1) * math.prod(output_shape(case))


SPEC = OpSpec(
    name="max_pool",
    cases=CASES,
    ours=ours,
    theirs=theirs,
    grads=("input",),
    raw=raw,
    flops=flops,
    bytes=moved,
    exact=True,
)

# --- adaptive -----------------------------------------------------------------------------------------------


def adaptive_case(reason, input, output_size, small=False):
    return Case(reason, {"input": input}, {"output_size": output_size}, small)


ADAPTIVE_CASES = [
    adaptive_case("1d", (2, 3, 11), 4, small=True),
    adaptive_case("2d of windows that overlap", (2, 3, 7, 10), (4, 7), small=True),
    adaptive_case("3d", (1, 2, 4, 5, 6), (2, 3, 4), small=True),
    adaptive_case("channels fill vectors", (1, 9, 6, 5), (4, 3), small=True),
    adaptive_case("the maximum of each plane", (2, 24, 7, 7), 1, small=True),
    adaptive_case("the maximum of a volume", (2, 9, 5, 6, 7), 1),
    adaptive_case("7x7 from 14", (2, 16, 14, 14), 7),
    adaptive_case("7x7 from 10", (2, 16, 10, 10), 7),
    adaptive_case("larger than the input", (2, 9, 3, 4), (7, 9), small=True),
    adaptive_case("the input's own size", (2, 9, 5, 6), (5, 6)),
    adaptive_case("rows are merged, columns are not", (2, 9, 6, 20), (1, 4)),
    adaptive_case("wide", (1, 2, 3, 700), (2, 300)),
    adaptive_case("one window wider than a piece", (1, 9, 2, 900), (2, 2)),
    adaptive_case("single pixels", (2, 70, 1, 1), 1),
    adaptive_case("empty batch", (0, 3, 8, 8), 3),
    *(adaptive_case(f"{c} channels at the vector edge", (1, c, 9, 7), 4) for c in (4, 7, 8, 15, 16, 17, 33)),
]


def by_dimension(module, stem):
    return lambda input, **kwargs: getattr(module, f"{stem}{input.dim() - 2}d")(input, **kwargs)


def adaptive_size(n, output_size):
    return [output_size] * n if isinstance(output_size, int) else list(output_size)


def adaptive_raw(input, output_size):
    ops, sizes = torch.ops.convnorm, adaptive_size(input.dim() - 2, output_size)
    out, indices = ops.adaptive_max_pool_forward(input, sizes, True)
    last = not input.is_contiguous()
    return [
        (ops.adaptive_max_pool_forward.default, (input, sizes, False)),
        (ops.adaptive_max_pool_forward.default, (input, sizes, True)),
        (ops.adaptive_max_pool_backward.default, (out, indices, list(input.shape), last)),
    ]


def adaptive_moved(case, itemsize):
    n, c, *spatial = case.shapes["input"]
    outputs = n * c * math.prod(adaptive_size(len(spatial), case.kwargs["output_size"]))
    return itemsize * math.prod(case.shapes["input"]) + (itemsize + 8) * outputs


ADAPTIVE = OpSpec(
    name="adaptive_max_pool",
    cases=ADAPTIVE_CASES,
    ours=by_dimension(CF, "adaptive_max_pool"),
    theirs=by_dimension(F, "adaptive_max_pool"),
    grads=("input",),
    raw=adaptive_raw,
    flops=lambda case: math.prod(case.shapes["input"]),
    bytes=adaptive_moved,
    exact=True,
)

# --- un-pooling ---------------------------------------------------------------------------------------------


def unpool_case(reason, input, output_size, kernel_size, small=False, **kwargs):
    """output_size is always given: it is the plane that the indices come from."""
    arguments = {"kernel_size": kernel_size, "output_size": output_size} | kwargs
    return Case(reason, {"input": input}, arguments, small)


UNPOOL_CASES = [  # windows that do not overlap: torch's threads race for an index that is there twice
    unpool_case("1d", (2, 3, 5), (10,), 2, small=True),
    unpool_case("2d with a remainder", (2, 3, 4, 5), (9, 11), 2, small=True),
    unpool_case("3d", (1, 2, 2, 3, 2), (4, 6, 6), (2, 2, 3), small=True),
    unpool_case("channels fill vectors", (1, 9, 3, 2), (6, 4), 2, small=True),
    unpool_case("stride larger than the kernel", (2, 3, 3, 4), (8, 11), 2, stride=3),
    unpool_case("padding", (2, 5, 3, 3), (7, 7), 3, stride=3, padding=1),
    unpool_case("one value per plane", (2, 70, 1, 1), (4, 4), 4),
    unpool_case("single pixels", (2, 70, 1, 1), (1, 1), 1),
    unpool_case("empty batch", (0, 3, 2, 2), (4, 4), 2),
    *(unpool_case(f"{c} channels at the slab edge", (2, c, 3, 3), (6, 6), 2) for c in (1, 63, 64, 65, 130)),
]


def unpool_inputs(case, dtype, layout="contiguous", seed=0, kind="normal"):
    inputs = random_inputs(case, dtype, layout, seed, kind)
    shape, window = inputs["input"].shape, {k: v for k, v in case.kwargs.items() if k != "output_size"}
    whole = torch.randn(*shape[:2], *case.kwargs["output_size"], generator=torch.Generator().manual_seed(seed))
    pooled, indices = getattr(F, f"max_pool{len(shape) - 2}d")(whole, return_indices=True, **window)
    assert pooled.shape == shape, f"{case}: a plane of {whole.shape[2:]} pools to {pooled.shape}"
    return inputs | {"indices": arrange(indices, layout)}


def unpool_raw(input, indices, output_size, **window):
    ops, size = torch.ops.convnorm, list(output_size)
    grad = ops.max_unpool_forward(input, indices, size)
    return [
        (ops.max_unpool_forward.default, (input, indices, size)),
        (ops.max_unpool_backward.default, (grad, indices)),
    ]


def unpool_outputs(case):
    return math.prod(case.shapes["input"][:2]) * math.prod(case.kwargs["output_size"])


UNPOOL = OpSpec(
    name="max_unpool",
    cases=UNPOOL_CASES,
    ours=by_dimension(CF, "max_unpool"),
    theirs=by_dimension(F, "max_unpool"),
    grads=("input",),
    raw=unpool_raw,
    flops=unpool_outputs,
    bytes=lambda case, itemsize: (itemsize + 8) * math.prod(case.shapes["input"]) + itemsize * unpool_outputs(case),
    exact=True,
    inputs=unpool_inputs,
)

SPECS = [SPEC, ADAPTIVE, UNPOOL]
