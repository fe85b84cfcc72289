"""Layer norm over any trailing dimensions."""

import math

import torch
import torch.nn.functional as F

import convnorm.functional as CF

from . import Case, OpSpec


def case(reason, input, shape, affine="weight bias", small=False, **kwargs):
    shapes = {"input": input} | dict.fromkeys(affine.split(), shape)
    return Case(reason, shapes, {"normalized_shape": shape} | kwargs, small)


CASES = [
    case("tokens", (3, 4, 6), (6,), small=True),
    case("two trailing dimensions", (3, 5, 4), (5, 4), small=True),
    case("images", (4, 3, 5, 4), (3, 5, 4), small=True),
    case("last dimension of images", (2, 3, 5, 4), (4,), small=True),
    case("all dimensions", (3, 5), (3, 5), small=True),
    case("without affine parameters", (5, 7), (7,), affine="", small=True),
    case("weight alone", (5, 7), (7,), affine="weight", small=True),
    case("bias alone", (5, 7), (7,), affine="bias", small=True),
    case("large eps", (5, 7), (7,), eps=0.5, small=True),
    case("one value per row", (5, 1), (1,)),
    case("empty batch", (0, 4, 6), (6,)),
    case("empty rows", (4, 0), (0,)),
    case("six dimensions", (2, 1, 3, 2, 2, 5), (2, 5)),
    case("more rows than are summed in float", (1100, 24), (24,)),
    case("one row", (1, 300), (300,)),
    case("rows of the largest batch", (70, 130), (130,)),
    case("rows of exactly a segment", (3, 4096), (4096,)),
    case("rows of more than a segment", (9, 5000), (5000,)),
    case("few long rows are cut into chunks", (3, 140000), (140000,)),
    case("many long rows", (70, 17000), (17000,)),
    # One less, exactly, and one more than a vector and than a group of four.
    *(case(f"width {w} at the vector edge", (5, w), (w,)) for w in (3, 4, 5, 7, 8, 9, 15, 16, 17)),
    *(case(f"width {w} at the group edge", (6, w), (w,)) for w in (31, 32, 33, 63, 64, 65)),
]


def raw(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    op = torch.ops.convnorm
    forward = input, list(normalized_shape), weight, bias, eps
    out, stats = op.layer_norm_forward(*forward)
    calls = [(op.layer_norm_forward.default, forward)]
    for wants in ((True, True), (True, False), (False, True)):
        grads = torch.ones_like(out), input, list(normalized_shape), weight, bias, stats, eps, *wants
        calls.append((op.layer_norm_backward.default, grads))
    return calls


SPEC = OpSpec(
    name="layer_norm",
    cases=CASES,
    ours=CF.layer_norm,
    theirs=F.layer_norm,
    grads=("input", "weight", "bias"),
    raw=raw,
    flops=lambda case: 7 * math.prod(case.shapes["input"]),  # statistics 3, xhat 2, weight and bias 2
    bytes=lambda case, itemsize: (
        itemsize * (sum(math.prod(s) for s in case.shapes.values()) + math.prod(case.shapes["input"]))
    ),
)
