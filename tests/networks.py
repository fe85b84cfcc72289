"""What must hold for a whole model that `convert` has been let loose on, whichever model it is."""

import copy

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from convnorm import conversion_report, convert, revert
from convnorm.convert import pairs
from convnorm.testing import assert_accurate


def prepared(model):
    """Dropout off, and batch norms as training leaves them: neither fresh nor alike."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return model


def floating(inputs, dtype):
    return tree_map(lambda t: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t, inputs)


def outputs_of(model, inputs):
    """The tensors that a model returns, for inputs in its dtype."""
    found = tree_leaves(model(*floating(inputs, next(model.parameters()).dtype)))
    return [t for t in found if isinstance(t, torch.Tensor)]


def backward(model, inputs):
    """The outputs; gradients of a fixed random weighting of them are left in the parameters."""
    outputs = outputs_of(model, inputs)
    generator = torch.Generator().manual_seed(1)
    used = [o for o in outputs if o.requires_grad]
    torch.autograd.backward(used, [torch.randn(o.shape, generator=generator).to(o.dtype) for o in used])
    return [o.detach() for o in outputs]


def seen_by_layers(model, inputs):
    """[(layer, its input, gradient of its output)] of every layer that convnorm has, in a run of torch's model."""
    seen = []

    def record(layer, args, out):
        row = [layer, args[0].detach().clone(), None]
        out.register_hook(lambda grad: row.__setitem__(2, grad))
        seen.append(row)

    handles = [m.register_forward_hook(record) for m in model.modules() if type(m) in pairs()]
    backward(model, inputs)
    for handle in handles:
        handle.remove()
    return seen


def layer_results(layer, x, grad):
    """Output, gradient of the input, gradients of the parameters in a row, buffers.

    Running statistics are one row, means and standard deviations: a mean that happens to be near zero is as exact as
    the spread of its channel allows, not as its own size suggests.
    """
    x = x.requires_grad_()
    out = layer(x)
    found = torch.autograd.grad(out, [x, *layer.parameters()], grad)
    buffers = dict(layer.named_buffers())
    if "running_mean" in buffers:
        buffers["running"] = torch.cat([buffers.pop("running_mean"), buffers.pop("running_var").sqrt()])
    parameters = torch.cat([torch.zeros(1), *(g.flatten() for g in found[1:])])
    return [out.detach(), found[0], parameters, *buffers.values()]


def check_layers(model, *inputs):
    """Every layer, on what it is given in training in this model, as accurate as torch's own: output and gradients.

    By layers, since a deep network in training is chaotic: a ReLU that one rounding error flips moves every gradient.
    """
    model = copy.deepcopy(model).train()
    rows = seen_by_layers(model, inputs)
    assert rows
    for layer, x, grad in rows:
        theirs = copy.deepcopy(layer)
        exact, ours = copy.deepcopy(theirs).double(), convert(copy.deepcopy(theirs))
        results = [layer_results(m, x.to(d), grad.to(d)) for m, d in ((ours, x.dtype), (theirs, x.dtype),
                                                                      (exact, torch.float64))]  # fmt: skip
        for a, b, c in zip(*results, strict=True):
            assert_accurate(a, b, c, str(layer))


def check_evaluation(model, *inputs):
    """The outputs in evaluation, in float32, as accurate as torch's own."""
    theirs = copy.deepcopy(model).eval()
    with torch.no_grad():
        models = convert(copy.deepcopy(theirs)), theirs, copy.deepcopy(theirs).double()
        results = [outputs_of(m, inputs) for m in models]
    for a, b, c in zip(*results, strict=True):
        assert_accurate(a, b, c)


def in_units(tensors):
    """Tensors of one layer, in units of the largest value there: a bias before a batch norm has no gradient."""
    scale = max((float(t.abs().max()) for t in tensors), default=0.0)
    return [t / scale for t in tensors] if scale else tensors


def check_training(model, *inputs, steps=3):
    """Steps of SGD in float64, where nothing flips: torch's outputs, gradients and buffers at every step."""
    theirs = copy.deepcopy(model).double().train()
    models = convert(copy.deepcopy(theirs)), theirs
    optimizers = [torch.optim.SGD(m.parameters(), 1e-3) for m in models]
    for _ in range(steps):
        results = []
        for m, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            outputs = backward(m, inputs)
            grads = [in_units([p.grad for p in layer.parameters(False) if p.grad is not None]) for layer in m.modules()]
            optimizer.step()
            results.append((outputs, grads, list(m.buffers())))
        torch.testing.assert_close(*results)


def check_state_dict(model):
    """Same names, and each side loads the other's."""
    theirs, ours = copy.deepcopy(model), convert(copy.deepcopy(model))
    with torch.no_grad():
        for t in ours.state_dict().values():
            t.mul_(2) if t.is_floating_point() else t.add_(1)
    wanted = copy.deepcopy(ours.state_dict())
    assert list(wanted) == list(theirs.state_dict())
    theirs.load_state_dict(wanted)
    ours.load_state_dict(model.state_dict())
    for loaded, source in ((theirs.state_dict(), wanted), (ours.state_dict(), model.state_dict())):
        for name, value in source.items():
            torch.testing.assert_close(loaded[name], value, rtol=0, atol=0, equal_nan=True)


def check_conversion(model):
    """Every layer that convnorm has a class for is swapped, and revert undoes it."""
    before = {name: type(m) for name, m in model.named_modules()}
    converted = convert(copy.deepcopy(model))
    assert {name: type(m) for name, m in converted.named_modules()} == {n: pairs().get(t, t) for n, t in before.items()}
    report = conversion_report(converted)
    assert report.count("convnorm") == sum(t in pairs() for t in before.values()) > 0
    assert not report.count("replaceable")
    assert {name: type(m) for name, m in revert(converted).named_modules()} == before
