"""Batch norm, alone and with a residual and ReLU; training returns the running statistics it updated."""

import math

import numpy as np
import torch
import torch.nn.functional as F

import convnorm.functional as CF

from . import Case, OpSpec, random_inputs


def case(reason, input, affine=True, running=True, residual=False, small=False, **kwargs):
    channels = input[1:2]
    shapes = {"input": input}
    shapes |= {"weight": channels, "bias": channels} if affine else {}
    shapes |= {"residual": input} if residual else {}
    shapes |= {"running_mean": channels, "running_var": channels} if running else {}
    return Case(reason, shapes, {"training": True} | kwargs, small)


def inference(reason, input, **kwargs):
    return case(reason, input, training=False, **kwargs)


CASES = [
    case("2d", (4, 3, 5, 4), small=True),
    case("1d", (3, 2, 7), running=False, small=True),
    case("3d", (2, 2, 3, 4, 2), running=False, small=True),
    case("fully connected", (6, 5), small=True),
    case("without affine parameters", (4, 3, 5, 4), affine=False, running=False, small=True),
    case("relu", (4, 3, 5, 4), act="relu", small=True),
    case("residual", (4, 3, 5, 4), residual=True, running=False, small=True),
    case("residual and relu", (4, 3, 5, 4), act="relu", residual=True, running=False, small=True),
    inference("inference", (4, 3, 5, 4), small=True),
    inference("inference with relu", (3, 2, 7), act="relu", small=True),
    inference("inference with residual and relu", (4, 3, 5, 4), act="relu", residual=True, small=True),
    inference("inference without affine parameters", (4, 3, 5, 4), affine=False, small=True),
    inference("inference fully connected", (6, 5), small=True),
    case("momentum zero leaves the running statistics", (4, 3, 5, 4), momentum=0.0),
    case("momentum one takes the batch", (4, 3, 5, 4), momentum=1.0),
    case("large eps", (4, 3, 5, 4), eps=0.5),
    case("empty batch", (0, 3, 5, 4)),
    inference("inference on an empty batch", (0, 3, 5, 4)),
    case("two values per channel", (2, 3, 1, 1)),
    case("one image", (1, 4, 9, 7), act="relu"),
    inference("one pixel", (1, 5, 1, 1)),
    case("few channels are cut into chunks", (2, 3, 190, 190), act="relu"),
    case("planes of several segments, many channels", (2, 64, 65, 67), residual=True, act="relu"),
    case("planes of 7x7 summed in groups", (8, 40, 7, 7), act="relu"),
    case("rows of more than one block", (3, 6, 20, 15), residual=True, act="relu"),
    case("more channels than a tile of rows", (2, 1030, 3, 3)),
    case("tall fully connected", (600, 33), act="relu"),
    # One less, exactly, and one more than a vector.
    *(case(f"{c} channels at the vector edge", (3, c, 4, 5), act="relu") for c in (1, 7, 8, 9, 15, 16, 17)),
    *(case(f"width {w} at the vector edge", (3, 4, 1, w), act="relu") for w in (7, 8, 9, 31, 32, 33)),
]


def inputs(case, dtype, layout="contiguous", seed=0, kind="normal"):
    """Random, with a running variance that is one."""
    found = random_inputs(case, dtype, layout, seed, kind)
    if "running_var" in found:
        found["running_var"] = found["running_var"].abs() + 0.5
    return found


def with_running(function, running_mean, running_var, training):
    """Runs function on copies of the running statistics and returns those it updates with its output."""
    if running_mean is None or not training:
        return function(running_mean, running_var)
    running_mean, running_var = running_mean.clone(), running_var.clone()
    return function(running_mean, running_var), running_mean, running_var


def ours(input, running_mean=None, running_var=None, weight=None, bias=None, residual=None, act=None, **kwargs):
    def run(mean, var):
        if act is None and residual is None:
            return CF.batch_norm(input, mean, var, weight, bias, **kwargs)
        return CF.batch_norm_act(input, mean, var, weight, bias, act=act, residual=residual, **kwargs)

    return with_running(run, running_mean, running_var, kwargs["training"])


class Extended(torch.autograd.Function):
    """Forward and backward in numpy's long double: the reference that float64 is measured against."""

    @staticmethod
    def forward(ctx, input, weight, bias, mean, var, training, eps):
        x = input.numpy().astype(np.longdouble)
        ctx.axes = tuple(d for d in range(x.ndim) if d != 1)
        wide = lambda t: np.asarray(t, np.longdouble).reshape(1, -1, *(1,) * (x.ndim - 2))  # noqa: E731
        ctx.count = x.size // x.shape[1] if training else np.inf
        ctx.weight = wide(1.0 if weight is None else weight.numpy())
        mean = x.mean(ctx.axes, keepdims=True) if training else wide(mean.numpy())
        var = np.square(x - mean).mean(ctx.axes, keepdims=True) if training else wide(var.numpy())
        ctx.r = 1 / np.sqrt(var + np.longdouble(eps))
        ctx.xhat = (x - mean) * ctx.r
        out = ctx.xhat * ctx.weight + wide(0.0 if bias is None else bias.numpy())
        return tuple(torch.from_numpy(a.astype(np.float64)) for a in (out, mean.ravel(), var.ravel()))

    @staticmethod
    def backward(ctx, grad_output, *_):
        g = grad_output.numpy().astype(np.longdouble)
        grad_bias, grad_weight = (t.sum(ctx.axes, keepdims=True) for t in (g, g * ctx.xhat))
        grad_input = ctx.weight * ctx.r * (g - (grad_bias + ctx.xhat * grad_weight) / ctx.count)
        grads = (grad_input, grad_weight.ravel(), grad_bias.ravel())
        wanted = zip(grads, ctx.needs_input_grad[:3], strict=True)
        return *(torch.from_numpy(a.astype(np.float64)) if need else None for a, need in wanted), *(None,) * 4


def reference(input, running_mean, running_var, weight, bias, training, momentum=0.1, eps=1e-5):
    """F.batch_norm with more digits than float64, where no transform is active: numpy cannot follow those."""
    if torch._C._are_functorch_transforms_active() or input.device.type != "cpu" or not input.numel():
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    out, mean, var = Extended.apply(input, weight, bias, running_mean, running_var, training, eps)
    if training and running_mean is not None:
        count = input.numel() // input.shape[1]
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean.detach())
        running_var.copy_((1 - momentum) * running_var + momentum * var.detach() * (count / (count - 1)))
    return out


def theirs(input, running_mean=None, running_var=None, weight=None, bias=None, residual=None, act=None, **kwargs):
    def run(mean, var):
        function = reference if input.dtype == torch.float64 else F.batch_norm
        out = function(input, mean, var, weight, bias, **kwargs)
        out = out if residual is None else out + residual
        return out if act is None else F.relu(out)

    return with_running(run, running_mean, running_var, kwargs["training"])


def raw(
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    residual=None,
    act=None,
    training=True,
    momentum=0.1,
    eps=1e-5,
):
    ops, relu = torch.ops.convnorm, act == "relu"
    if training:
        forward = ops.batch_norm_train, (input, weight, bias, residual, eps, relu)
        out, stats = forward[0](*forward[1])
    else:
        forward = ops.batch_norm_eval, (input, weight, bias, residual, running_mean, running_var, eps, relu)
        out, stats = forward[0](*forward[1]), torch.stack((running_mean, running_var)).double()
    mask = out if relu and residual is not None else None
    grad = torch.ones_like(out)
    backward = (grad, input, weight, bias, mask, stats, eps, training, relu, True, True, residual is not None)
    calls = [(forward[0].default, forward[1]), (ops.batch_norm_backward.default, backward)]
    if training and running_mean is not None:
        calls.append((ops.batch_norm_update.default, (running_mean, running_var, stats, input, momentum)))
    return calls


def flops(case):
    """Per value: three for the statistics, two to normalise, one for a residual and one for relu."""
    per_value = 3 * case.kwargs["training"] + 2 + ("residual" in case.shapes) + ("act" in case.kwargs)
    return per_value * math.prod(case.shapes["input"])


def moved(case, itemsize):
    return itemsize * (sum(math.prod(s) for s in case.shapes.values()) + math.prod(case.shapes["input"]))


SPEC = OpSpec(
    name="batch_norm",
    cases=CASES,
    ours=ours,
    theirs=theirs,
    grads=("input", "weight", "bias", "residual"),
    raw=raw,
    flops=flops,
    bytes=moved,
    inputs=inputs,
    # A mapped input may not update running statistics that are not mapped, in torch as here.
    vmap=lambda case: not case.kwargs["training"] or "running_mean" not in case.shapes,
)
