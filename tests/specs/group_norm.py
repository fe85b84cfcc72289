"""Group norm, and instance norm (no num_groups), which returns the running statistics it updated."""

import math

import numpy as np
import torch
import torch.nn.functional as F

import convnorm.functional as CF

from . import Case, OpSpec, random_inputs


def case(reason, input, groups, affine="weight bias", small=False, **kwargs):
    shapes = {"input": input} | dict.fromkeys(affine.split(), input[1:2])
    return Case(reason, shapes, {"num_groups": groups} | kwargs, small)


def instance(reason, input, affine="weight bias", running=False, small=False, **kwargs):
    shapes = {"input": input} | dict.fromkeys(affine.split(), input[1:2])
    shapes |= {"running_mean": input[1:2], "running_var": input[1:2]} if running else {}
    return Case(f"instance norm {reason}", shapes, kwargs, small)


CASES = [
    case("2d", (3, 6, 5, 4), 3, small=True),
    case("1d", (2, 6, 7), 2, small=True),
    case("3d", (2, 4, 3, 2, 4), 2, small=True),
    case("no spatial dimensions", (5, 24), 2, small=True),
    case("one group", (2, 5, 4, 3), 1, small=True),
    case("a group per channel", (2, 5, 4, 3), 5, small=True),
    case("without affine parameters", (2, 6, 4, 3), 3, affine="", small=True),
    case("weight alone", (2, 6, 4, 3), 3, affine="weight", small=True),
    case("large eps", (2, 6, 4, 3), 3, eps=0.5, small=True),
    case("four spatial dimensions", (2, 4, 2, 3, 2, 3), 2),
    case("empty batch", (0, 6, 5, 4), 3),
    case("empty images", (2, 6, 0, 4), 3, affine=""),  # torch gives NaN for the gradients of parameters
    case("one value per group", (3, 4, 1, 1), 4),
    case("32 groups", (2, 64, 14, 14), 32),
    case("short groups in batches", (3, 40, 7, 7), 20),
    case("groups of more than a segment", (2, 8, 40, 41), 2),
    case("few groups are cut into chunks", (1, 4, 200, 190), 2),
    case("few groups of many planes", (2, 70, 33, 60), 1),
    case("rows of more than one block", (2, 12, 30, 21), 3),
    case("slabs of some groups", (2, 192, 28, 28), 32),
    case("more channels than a slab", (2, 1030, 3, 3), 103),
    case("a group wider than a slab", (2, 1040, 2, 3), 2),
    *(case(f"{c} channels at the vector edge", (2, c, 4, 5), 1) for c in (3, 7, 8, 9, 15, 16, 17)),
    *(case(f"width {w} at the vector edge", (2, 4, 1, w), 2) for w in (7, 8, 9, 31, 32, 33)),
    instance("2d", (3, 4, 5, 4), small=True),
    instance("1d", (2, 3, 7), affine="", small=True),
    instance("3d", (2, 3, 3, 2, 4), small=True),
    instance("updates running statistics", (3, 4, 5, 4), running=True, small=True),
    instance("with running statistics", (3, 4, 5, 4), running=True, use_input_stats=False, small=True),
    instance("of more than one block", (2, 9, 21, 20), running=True, momentum=0.3),
    instance("of few large planes", (1, 2, 260, 270)),
]


def inputs(case, dtype, layout="contiguous", seed=0, kind="normal"):
    """Random, with a running variance that is one."""
    found = random_inputs(case, dtype, layout, seed, kind)
    if "running_var" in found:
        found["running_var"] = found["running_var"].abs() + 0.5
    return found


class Extended(torch.autograd.Function):
    """Forward and backward in numpy's long double: the reference that float64 is measured against."""

    @staticmethod
    def forward(ctx, input, groups, weight, bias, eps):
        ctx.shape, ctx.view = input.shape, (input.shape[0], groups, input.shape[1] // groups, -1)
        x = input.numpy().astype(np.longdouble).reshape(ctx.view)
        wide = lambda t, missing: (  # noqa: E731
            np.longdouble(missing) if t is None else t.numpy().astype(np.longdouble).reshape(1, groups, -1, 1)
        )
        ctx.weight = wide(weight, 1)
        x = x - x.mean((2, 3), keepdims=True)
        ctx.r = 1 / np.sqrt(np.square(x).mean((2, 3), keepdims=True) + np.longdouble(eps))
        ctx.xhat = x * ctx.r
        return torch.from_numpy((ctx.xhat * ctx.weight + wide(bias, 0)).astype(np.float64).reshape(input.shape))

    @staticmethod
    def backward(ctx, grad_output):
        g = grad_output.numpy().astype(np.longdouble).reshape(ctx.view)
        h = g * ctx.weight
        along, level = ((h * t).mean((2, 3), keepdims=True) for t in (ctx.xhat, 1))
        grads = [(ctx.r * (h - level - ctx.xhat * along)).reshape(ctx.shape)]
        grads += [t.sum((0, 3)).ravel() for t in (g * ctx.xhat, g)]
        found = [torch.from_numpy(t.astype(np.float64)) for t in grads]
        needs = ctx.needs_input_grad
        return found[0], None, found[1] if needs[2] else None, found[2] if needs[3] else None, None


class Reference:
    """torch's functions, with more digits than float64 where no transform is active: numpy cannot follow those."""

    instance_norm = staticmethod(F.instance_norm)

    @staticmethod
    def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
        if torch._C._are_functorch_transforms_active() or input.device.type != "cpu" or not input.numel():
            return F.group_norm(input, num_groups, weight, bias, eps)
        return Extended.apply(input, num_groups, weight, bias, eps)


def call(functions, input, num_groups=None, running_mean=None, running_var=None, weight=None, bias=None, **kwargs):
    if num_groups is not None:
        return functions.group_norm(input, num_groups, weight, bias, **kwargs)
    if running_mean is None and functions is Reference:
        return Reference.group_norm(input, input.shape[1], weight, bias, **kwargs)
    if running_mean is None:
        return functions.instance_norm(input, None, None, weight, bias, **kwargs)
    running = running_mean.clone(), running_var.clone()
    out = functions.instance_norm(input, *running, weight, bias, **kwargs)
    return (out, *running) if kwargs.get("use_input_stats", True) else out


def raw(input, num_groups=None, weight=None, bias=None, eps=1e-5, **_):
    op, groups = torch.ops.convnorm, input.shape[1] if num_groups is None else num_groups
    forward = input, groups, weight, bias, eps
    out, stats = op.group_norm_forward(*forward)
    calls = [(op.group_norm_forward.default, forward)]
    for wants in ((True, True), (True, False), (False, True)):
        grads = torch.ones_like(out), input, groups, weight, bias, stats, eps, *wants
        calls.append((op.group_norm_backward.default, grads))
    return calls


SPEC = OpSpec(
    name="group_norm",
    cases=CASES,
    ours=lambda **inputs: call(CF, **inputs),
    theirs=lambda **inputs: call(Reference if inputs["input"].dtype == torch.float64 else F, **inputs),
    grads=("input", "weight", "bias"),
    raw=raw,
    flops=lambda case: 5 * math.prod(case.shapes["input"]),  # statistics 3, normalise and affine 2
    bytes=lambda case, itemsize: (
        itemsize * (sum(math.prod(s) for s in case.shapes.values()) + math.prod(case.shapes["input"]))
    ),
    inputs=inputs,
    # A mapped input may not update running statistics that are not mapped, in torch as here.
    vmap=lambda case: "running_mean" not in case.shapes or not case.kwargs.get("use_input_stats", True),
)
