"""Stacks of ConvNormAct, torch's layers under the same names, and what a training step of them gives and keeps."""

import copy
import functools
import itertools

import torch
from torch import nn

import convnorm.nn as NN
from convnorm.testing import assert_same

FUSED = "ConvNormActBackward"
block = functools.partial(NN.ConvNormAct2d, kernel_size=3, padding=1)


class Chain(nn.Module):
    """torch's own layers, with ConvNormAct's names."""

    def __init__(self, conv, norm, act):
        super().__init__()
        self.conv, self.norm, self.act = conv, norm, act

    def forward(self, x, residual=None):
        z = self.norm(self.conv(x))
        z = z if residual is None else z + residual
        return torch.relu(z) if self.act else z


def stack(channels=(3, 6, 6, 6, 6), **options):
    torch.manual_seed(1)
    model = nn.Sequential(*(block(a, b, **options) for a, b in itertools.pairwise(channels)))
    for p in model.parameters():
        nn.init.normal_(p) if p.dim() == 1 else None
    return model


def plain(model):
    """The same layers, composed of convnorm's ops: every activation is kept."""
    twin = copy.deepcopy(model)
    for m in twin.modules():
        m.recompute = False
    return twin


def gradients(model, x, *more, call=None):
    """Output and all gradients of a weighted sum."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *more)]
    model.zero_grad()
    out = (call or model)(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    (out * weights.to(out.dtype)).sum().backward()
    found = {"output": out} | {f"input {i}": t.grad for i, t in enumerate(leaves)}
    return found | {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert_same(a[key], b[key], key)


def saved_bytes(model, x):
    """What a training forward keeps for its backward: unique storages, parameters excluded."""
    storages = {}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(x)
    assert out.requires_grad
    return sum(n for at, n in storages.items() if at not in own)
