"""Batch norm, relu and max pooling in one pass; training returns the running statistics it updated."""

import math
from itertools import chain

import torch
import torch.nn.functional as F

import convnorm.functional as CF
from convnorm.ops.max_pool import NOTHING, OFFSETS, output_size

from . import Case, OpSpec, random_inputs
from .batch_norm import reference, with_running
from .max_pool import geometry

WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def case(reason, input, kernel_size, affine=True, running=True, small=False, **kwargs):
    channels = input[1:2]
    shapes = {"input": input}
    shapes |= {"weight": channels, "bias": channels} if affine else {}
    shapes |= {"running_mean": channels, "running_var": channels} if running else {}
    return Case(reason, shapes, {"training": True, "kernel_size": kernel_size} | kwargs, small)


CASES = [
    case("1d", (3, 2, 11), 3, stride=2, padding=1, running=False, small=True),
    case("2d", (4, 3, 7, 6), 2, small=True),
    case("3d", (2, 2, 4, 5, 4), (2, 3, 2), stride=(1, 2, 2), padding=(1, 1, 0), running=False, small=True),
    case("the ResNet stem, small", (2, 9, 9, 8), 3, stride=2, padding=1, running=False, small=True),
    case("without affine parameters", (3, 3, 6, 5), 2, affine=False, running=False, small=True),
    case("without relu", (3, 3, 6, 5), 2, act=None, running=False, small=True),
    case("evaluation", (2, 3, 7, 6), 3, stride=2, padding=1, training=False, small=True),
    case("evaluation without affine parameters", (3, 3, 6, 5), 2, training=False, affine=False, small=True),
    case("window of 289 positions: offsets of four bytes", (2, 3, 20, 19), 17, stride=2, padding=3),
    case("ceil_mode", (2, 3, 8, 9), 3, stride=2, ceil_mode=True),
    case("dilation", (2, 3, 12, 13), 3, dilation=2, padding=1),
    case("stride larger than the kernel skips input", (2, 3, 13, 16), 2, stride=(3, 4)),
    case("empty batch", (0, 3, 8, 8), 2),
    case("one pixel", (5, 3, 1, 1), 1),
    case("one window", (3, 5, 7, 7), 7),
    case("LeNet", (6, 20, 28, 28), 2),
    case("large planes, channel by channel", (2, 64, 66, 67), 3, stride=2, padding=1, running=False),
    case("planes and images cut into bands", (1, 3, 260, 270), 3, stride=2, padding=1, running=False),
    case("3d cut into bands", (1, 8, 12, 40, 44), 3, stride=2, padding=1, running=False),
    *(case(f"{c} channels at the vector edge", (2, c, 6, 7), 3, stride=2, padding=1) for c in (7, 8, 9, 15, 16, 17)),
]


def inputs(case, dtype, layout="contiguous", seed=0, kind="normal"):
    """In float64 random; else multiples of 1/11, scaled by at least a half.

    So values of a window are equal, or stay apart when they are rounded: every dtype finds its maxima in the same
    places, and gradients can be compared. Sums are rounded, unlike those of multiples of 1/8.
    """
    found = random_inputs(case, dtype, layout, seed, kind)
    if kind == "normal" and dtype != torch.float64:
        found["input"] = (found["input"].float() * 8).round().div(11).to(dtype)
        if "weight" in found:
            found["weight"] = found["weight"].sign() * (found["weight"].abs() + 0.5)
    if "running_var" in found:
        found["running_var"] = found["running_var"].abs() + 0.5
    return found


def ours(input, running_mean=None, running_var=None, weight=None, bias=None, **kwargs):
    def run(mean, var):
        return CF.batch_norm_act_max_pool(input, mean, var, weight, bias, **kwargs)

    return with_running(run, running_mean, running_var, kwargs["training"])


def theirs(input, running_mean=None, running_var=None, weight=None, bias=None, act="relu", **kwargs):
    window = {k: kwargs.pop(k) for k in WINDOW if k in kwargs}

    def run(mean, var):
        function = reference if input.dtype == torch.float64 else F.batch_norm
        out = function(input, mean, var, weight, bias, **kwargs)
        out = out if act is None else F.relu(out)
        return getattr(F, f"max_pool{input.dim() - 2}d")(out, **window)

    return with_running(run, running_mean, running_var, kwargs["training"])


def raw(input, running_mean=None, running_var=None, weight=None, bias=None, act="relu", training=True, **window):
    ops, relu = torch.ops.convnorm, act == "relu"
    parts, ceil_mode = geometry(input.dim() - 2, **window)
    pool, calls = (list(chain(*parts)), ceil_mode), []
    for record in (NOTHING, OFFSETS):
        if training:
            arguments = (input, weight, bias, 1e-5, relu, *pool, record)
            out, argmax, stats = ops.batch_norm_max_pool_train(*arguments)
            calls.append((ops.batch_norm_max_pool_train.default, arguments))
        else:
            arguments = (input, weight, bias, running_mean, running_var, 1e-5, relu, *pool, record)
            out, argmax = ops.batch_norm_max_pool_eval(*arguments)
            stats = torch.stack((running_mean, running_var)).double()
            calls.append((ops.batch_norm_max_pool_eval.default, arguments))
    saved = (torch.ones_like(out), argmax, input, weight, bias, stats)
    calls.append((ops.batch_norm_max_pool_backward.default, (*saved, 1e-5, training, relu, pool[0], True, True)))
    return calls


def pooled(case):
    n, c, *spatial = case.shapes["input"]
    window, ceil_mode = geometry(len(spatial), **{k: v for k, v in case.kwargs.items() if k in WINDOW})
    return window[0], math.prod([n, c, *output_size(spatial, *window, ceil_mode)])


def flops(case):
    """Per value three for the statistics, two to normalise and one for relu; then a comparison per position."""
    kernel, outputs = pooled(case)
    per_value = 3 * case.kwargs["training"] + 2 + (case.kwargs.get("act", "relu") is not None)
    return per_value * math.prod(case.shapes["input"]) + math.prod(kernel) * outputs


def moved(case, itemsize):
    """Input, output, and a byte per output for the backward."""
    return itemsize * math.prod(case.shapes["input"]) + (itemsize + 1) * pooled(case)[1]


SPEC = OpSpec(
    name="batch_norm_max_pool",
    cases=CASES,
    ours=ours,
    theirs=theirs,
    grads=("input", "weight", "bias"),
    raw=raw,
    flops=flops,
    bytes=moved,
    inputs=inputs,
    # A mapped input may not update running statistics that are not mapped, in torch as here.
    vmap=lambda case: not case.kwargs["training"] or "running_mean" not in case.shapes,
)
