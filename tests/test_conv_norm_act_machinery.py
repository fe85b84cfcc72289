"""ConvNormAct under PyTorch's tools: checkpointing, compilers, transforms, autocast, hooks, folding, copies."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import convnorm
from convnorm.testing import assert_same
from tests.stacks import FUSED, assert_equal, block, gradients, plain, saved_bytes, stack
from tests.test_batch_norm import same_buffers


@pytest.mark.parametrize("regions", [[4], [1, 3], [2, 2]], ids=str)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant, regions):
    model, x = stack(), torch.randn(2, 3, 8, 8)

    def call(z):
        at = 0
        for i, n in enumerate(regions):
            part, at = model[at : at + n], at + n
            z = part(z) if i == 0 and len(regions) > 1 else checkpoint(part, z, use_reentrant=use_reentrant)
        return z

    expected = gradients(plain(model), x)
    assert_equal(gradients(model, x, call=call), expected)
    with torch.autograd.graph.save_on_cpu():  # copies what a region is given: it comes back as another object
        assert_equal(gradients(model, x, call=call), expected)


def test_evaluation_and_no_grad_are_the_plain_layers():
    model, x = stack(), torch.randn(2, 3, 8, 8)
    twin = plain(model)
    with torch.no_grad():
        assert_same(model(x), twin(x))
    same_buffers(model[0].norm, twin[0].norm)
    a, b = gradients(model.eval(), x), gradients(twin.eval(), x)
    assert_equal(a, b)
    assert FUSED not in a["output"].grad_fn.name()
    with torch.inference_mode():
        assert_same(model(x), twin(x))


def test_compiles():
    torch._dynamo.reset()
    model, x = stack((3, 4, 4)), torch.randn(2, 3, 6, 6)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    assert_equal(gradients(model, x), gradients(twin, x, call=compiled))
    same_buffers(model[1].norm, twin[1].norm)


def test_transforms_and_forward_mode():
    model, x = stack((3, 4), track_running_stats=False), torch.randn(2, 3, 6, 6)
    params = dict(model.named_parameters())

    def loss(params, x):
        return torch.func.functional_call(model, params, x).square().sum()

    found = torch.func.grad(loss)(params, x)
    expected = torch.autograd.grad(loss(params, x), list(params.values()))
    for a, b in zip(found.values(), expected, strict=True):
        assert_same(a, b)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(model(dual)).tangent is not None


def test_autocast():
    model, x = stack(), torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = gradients(model, x), gradients(plain(model), x)
        assert saved_bytes(model, x) < 0.65 * saved_bytes(plain(model), x)
    assert a["output"].dtype == torch.bfloat16
    assert_equal(a, b)


def test_hooks_and_replaced_layers_are_honoured():
    layer, x, seen = block(3, 4), torch.randn(2, 3, 6, 6), []
    for register, note in (
        (layer.conv.register_forward_hook, lambda *_: seen.append("conv")),
        (layer.norm.register_forward_pre_hook, lambda *_: seen.append("norm")),
        (layer.norm.register_full_backward_hook, lambda *_: seen.append("backward")),
        (nn.modules.module.register_module_forward_hook, lambda m, *_: seen.append("all") if m is layer.norm else None),
    ):
        handle = register(note)
        layer(x).sum().backward()
        handle.remove()
    assert seen == ["conv", "norm", "backward", "all"]
    assert layer(x).grad_fn.name() == FUSED
    layer.norm = nn.Identity()
    assert_same(layer(x), layer.conv(x))


def test_traced_and_folded():
    model, x = stack((3, 4, 4)), torch.randn(2, 3, 6, 6)
    model(x)
    model.eval()
    assert_same(torch.fx.symbolic_trace(model)(x), model(x))
    expected = model(x)
    assert "2 of 2 batch norms folded" in str(convnorm.fold(model, x))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_copies_and_state():
    model, x = stack(), torch.randn(2, 3, 8, 8)
    out = model(x)
    assert list(model[0].state_dict()) == [
        "conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"
    ]  # fmt: skip
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal(gradients(twin, x), gradients(copy.deepcopy(model), x))
    file = io.BytesIO()
    torch.save(out, file)  # the activation alone
    assert len(file.getvalue()) < out.numel() * 4 + 2000
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), out)
    assert "recompute=False" in repr(plain(model)) and "recompute" not in repr(model)
