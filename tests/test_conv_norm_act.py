"""ConvNormAct: torch's chain of three layers, its bits, its memory, and what it does when something changes between."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import convnorm.nn as NN
from convnorm.ops._conv_norm_act import _sources
from convnorm.testing import assert_accurate, assert_same
from tests.stacks import FUSED, Chain, assert_equal, block, gradients, plain, saved_bytes, stack
from tests.test_batch_norm import same_buffers

SPECS = {  # name -> (class, torch's conv, torch's norm, arguments, input, act)
    "1d": (NN.ConvNormAct1d, nn.Conv1d, nn.BatchNorm1d, {"kernel_size": 3}, (4, 6, 9), "relu"),
    "2d": (NN.ConvNormAct2d, nn.Conv2d, nn.BatchNorm2d, {"kernel_size": 3, "padding": 1}, (4, 6, 9, 8), "relu"),
    "3d": (NN.ConvNormAct3d, nn.Conv3d, nn.BatchNorm3d, {"kernel_size": 2}, (3, 6, 4, 5, 6), "relu"),
    "no act": (NN.ConvNormAct2d, nn.Conv2d, nn.BatchNorm2d, {"kernel_size": 1, "bias": True}, (4, 6, 7, 5), None),
    "strided": (NN.ConvNormAct2d, nn.Conv2d, nn.BatchNorm2d,
                {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 2},
                (4, 6, 9, 8), "relu"),
    "same": (NN.ConvNormAct2d, nn.Conv2d, nn.BatchNorm2d, {"kernel_size": 3, "padding": "same"}, (4, 6, 7, 7), "relu"),
    "reflect": (NN.ConvNormAct2d, nn.Conv2d, nn.BatchNorm2d,
                {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"}, (4, 6, 9, 8), "relu"),
    "circular": (NN.ConvNormAct1d, nn.Conv1d, nn.BatchNorm1d,
                 {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (4, 6, 9), "relu"),
}  # fmt: skip


def assert_as_good(ours, theirs, reference, what):
    if ours.dtype == torch.float64:  # torch is no reference for itself there
        torch.testing.assert_close(ours, reference, msg=lambda text: f"{what}: {text}")
    else:
        assert_accurate(ours, theirs, reference.detach(), what)


# --- answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SPECS)
def test_equals_torchs_chain(name, dtype, channels_last, residual):
    kind, conv, norm, options, shape, act = SPECS[name]
    if channels_last and len(shape) < 4:
        return  # torch has no such layout for (n, c, l)
    torch.manual_seed(3)
    ours = kind(6, 8, act=act, **options)
    with torch.no_grad():
        ours.norm.weight.uniform_(0.5, 2)
        ours.norm.bias.normal_()
    exact = Chain(conv(6, 8, **{"bias": False, **options}), norm(8), act).double()
    exact.load_state_dict(ours.state_dict())
    theirs, ours = copy.deepcopy(exact).to(dtype), ours.to(dtype)
    x = (torch.randn(shape) + 1).to(dtype)  # means of y near zero would have its rounding, at no scale of their own
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = x.contiguous(memory_format=layout) if channels_last else x
    more = [torch.randn(exact(x.double()).shape).to(dtype)] if residual else []
    exact.load_state_dict(theirs.state_dict())  # bfloat16's values, not float32's
    ours.load_state_dict(theirs.state_dict())
    for _ in range(3):
        a, b = gradients(ours, x, *more), gradients(theirs, x, *more)
        reference = gradients(exact, x.double(), *(t.double() for t in more))
        assert a["output"].grad_fn.name() == FUSED
        assert a["output"].dtype == dtype
        assert a["output"].is_contiguous(memory_format=layout if channels_last else torch.contiguous_format)
        assert a.keys() == b.keys() == reference.keys()
        for key in a:
            assert_as_good(a[key], b[key], reference[key], key)
    for key, buffer in ours.norm.named_buffers():
        assert_as_good(buffer, theirs.norm.get_buffer(key), exact.norm.get_buffer(key), key)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"act": None}, {"padding_mode": "replicate", "groups": 3}, {"affine": False}, {"bias": True}],
    ids=str,
)
@pytest.mark.winograd
def test_recomputing_changes_no_bit(options, dtype, channels_last):
    model = stack((3, 12, 12, 12, 12), **options).to(dtype)
    x = torch.randn(2, 3, 9, 10, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    twin = plain(model)
    for _ in range(3):
        assert_equal(gradients(model, x), gradients(twin, x))
    same_buffers(model[3].norm, twin[3].norm)
    assert saved_bytes(model, x) < 0.65 * saved_bytes(twin, x)


def test_residual_blocks_keep_the_sum():
    class Net(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.stem, self.a, self.b, self.c = stack(**options)

        def forward(self, x):
            s = self.stem(x)
            return self.c(self.b(self.a(s), s))

    net, x = Net(), torch.randn(2, 3, 8, 8)
    assert_equal(gradients(net, x), gradients(plain(net), x))


@pytest.mark.parametrize("frozen", ["conv", "norm", "both"])
def test_frozen_layers(frozen):
    model, x = stack(), torch.randn(2, 3, 8, 8)
    for part in ("conv", "norm") if frozen == "both" else (frozen,):
        getattr(model[2], part).requires_grad_(False)
    assert_equal(gradients(model, x), gradients(plain(model), x))


def test_settings_of_the_norm():
    x = torch.randn(4, 3, 6, 6)
    for options in ({"momentum": None, "eps": 0.1}, {"track_running_stats": False}, {"momentum": 0.7, "affine": False}):
        ours = block(3, 5, **options)
        theirs = Chain(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5, **options), "relu")
        theirs.load_state_dict(ours.state_dict())
        for mode in (True, True, True, False):
            a, b = (gradients(m.train(mode), x) for m in (ours, theirs))
            batch = mode or ours.norm.running_mean is None
            assert (a["output"].grad_fn.name() == FUSED) == batch
            for key in a:
                assert torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-4), key
        if ours.norm.running_mean is not None:
            same_buffers(ours.norm, theirs.norm)
            assert ours.norm.num_batches_tracked == 3


# --- memory -------------------------------------------------------------------------------------------------


def test_a_stack_keeps_at_most_six_tenths_of_torchs_activations():
    ours, x = stack((3, 16, 16, 16, 16)), torch.randn(2, 3, 32, 32)
    convs = (nn.Conv2d(m.conv.in_channels, 16, 3, padding=1, bias=False) for m in ours)
    theirs = nn.Sequential(*(Chain(conv, nn.BatchNorm2d(16), "relu") for conv in convs))
    kept, torchs = saved_bytes(ours, x), saved_bytes(theirs, x)
    print(f"kept for the backward: {kept:,} bytes; by torch's layers {torchs:,}; ratio {kept / torchs:.3f}")
    assert kept <= 0.6 * torchs
    assert kept >= 4 * 2 * 16 * 32 * 32 * 4  # one output of a convolution per block: nothing is hidden from the hooks


@pytest.mark.parametrize("kept", ["nothing", "the output", "all activations"])
def test_nothing_outlives_the_backward(kept):
    model, x, refs, before = stack(), torch.randn(2, 3, 8, 8), [], len(_sources)

    def pack(t):
        refs.append(weakref.ref(t.untyped_storage()))
        return t

    gc.disable()  # freed by reference counts, not when the collector comes
    try:
        held = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            z = x
            for layer in model:
                z = layer(z)
                held.append(z)
        held = {"nothing": [], "the output": [z], "all activations": held}[kept]
        assert all(r() is not None for r in refs)
        z.sum().backward()
        del z
        own = [*model.parameters(), *model.buffers(), x, *held]
        alive = {s.data_ptr() for r in refs if (s := r()) is not None} - {t.untyped_storage().data_ptr() for t in own}
        assert not alive
        del own, held
        assert len(_sources) == before
    finally:
        gc.enable()


def test_a_forward_without_backward_keeps_nothing():
    model, before = stack(), len(_sources)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        out = model(torch.randn(2, 3, 8, 8))
    assert len(_sources) == before + 1
    del out
    assert len(_sources) == before


def test_offloading_sees_every_tensor():
    model, x = stack(), torch.randn(2, 3, 8, 8)
    expected = gradients(plain(model), x)
    packed = []

    def pack(t):
        packed.append(tuple(t.shape))
        return pickle.dumps(t.detach())

    def call(leaf):
        with torch.autograd.graph.saved_tensors_hooks(pack, pickle.loads):
            return model(leaf)

    assert_equal(gradients(model, x, call=call), expected)
    assert packed.count((2, 6, 8, 8)) == 4 + 3  # each block its own y, and all but the first their input's


# --- changes between the blocks -----------------------------------------------------------------------------


def in_place(z):
    z.mul_(2)


def in_place_unrecorded(z):
    with torch.no_grad():
        z.add_(1)


def through_a_view(z):
    z[0].zero_()


def through_detach(z):
    z.detach().clamp_(max=1)


@pytest.mark.parametrize("change", [in_place, in_place_unrecorded, through_a_view, through_detach])
def test_an_activation_changed_between_blocks(change):
    def call(model, leaf):
        z = model[0](leaf)
        change(z)
        return model[1](z)

    model, x = stack((3, 6, 6), act=None), torch.randn(2, 3, 8, 8)
    twin = plain(model)
    found = gradients(model, x, call=lambda leaf: call(model, leaf))
    assert_equal(found, gradients(twin, x, call=lambda leaf: call(twin, leaf)))


def test_an_activation_changed_after_it_was_used():
    model, x = stack((3, 6, 6)), torch.randn(2, 3, 8, 8)
    twin = plain(model)

    def call(model, leaf):
        z = model[0](leaf)
        out = model[1](z)
        return out + z.mul_(2)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(twin, x, call=lambda leaf: call(twin, leaf))
    found = gradients(model, x, call=lambda leaf: call(model, leaf))  # nothing that was changed is needed
    assert_equal(found, gradients(model, x, call=lambda leaf: (z := model[0](leaf)).mul(2) + model[1](z)))


def test_parameters_changed_in_place():
    model, x = stack((3, 6, 6)), torch.randn(2, 3, 8, 8)
    twin = plain(model)

    def call(model, leaf):  # before the first layer's backward, but after the activation was made
        z = model[0](leaf)
        between = z.detach().requires_grad_() if model is twin else z
        with torch.no_grad():
            model[0].norm.weight.mul_(3)
        out = model[1](between)
        return out.sum()

    loss = call(model, x)
    grad = torch.autograd.grad(loss, model[1].conv.weight, retain_graph=True)[0]
    assert_same(grad, torch.autograd.grad(call(twin, x), twin[1].conv.weight)[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_activation_used_elsewhere_too():
    model, x = stack((3, 6, 6)), torch.randn(2, 3, 8, 8)
    twin = plain(model)

    def call(model, leaf):
        z = model[0](leaf)
        return model[1](z) + model[1](z.clone()) + model[1](z) * z.exp()

    found = gradients(model, x, call=lambda leaf: call(model, leaf))
    assert_equal(found, gradients(twin, x, call=lambda leaf: call(twin, leaf)))


def test_a_graph_kept_for_a_second_backward():
    model, x = stack((3, 6, 6)), torch.randn(2, 3, 8, 8)
    z = model[0](x)
    out = model[1](z)
    first = torch.autograd.grad(out.sum(), list(model.parameters()), retain_graph=True)
    again = torch.autograd.grad(out.sum(), list(model.parameters()), retain_graph=True)
    late = torch.autograd.grad(model[1](z).sum(), list(model.parameters()))  # its source is gone: z is kept
    for a, b, c in zip(first, again, late, strict=True):
        assert_same(a, b)
        assert_same(a, c)


@pytest.mark.parametrize("create_graph_from", ["constant", "variable"])
def test_second_derivatives_are_refused_or_right(create_graph_from):
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    model = stack((3, 6, 6))

    def penalty(model):
        out = model(x)
        out = out.sum() if create_graph_from == "constant" else out.square().sum()
        grad = torch.autograd.grad(out, x, create_graph=True)[0]
        return grad.square().sum() + model(x).mean()

    with pytest.raises(RuntimeError, match=r"ConvNormAct2d: second derivatives .* recompute=False"):
        penalty(model).backward()
    torch.autograd.grad(penalty(plain(model)), x)


def test_bad_arguments():
    with pytest.raises(ValueError, match="ConvNormAct2d: act 'gelu' must be 'relu' or None"):
        block(3, 4, act="gelu")
    with pytest.raises(ValueError, match="divisible by groups"):
        block(3, 4, groups=2)
    layer = block(3, 4)
    for bad in ((2, 4, 6, 6), (2, 3, 6), (3, 6, 6)):
        with pytest.raises((RuntimeError, ValueError)) as ours:
            layer(torch.randn(bad))
        with pytest.raises(type(ours.value)):
            plain(layer)(torch.randn(bad))
    with pytest.raises(RuntimeError, match="residual of size"):
        layer(torch.randn(2, 3, 6, 6), torch.randn(2, 4, 6, 5))
    with pytest.raises(NotImplementedError, match="must be float32"):
        layer(torch.ones(2, 3, 6, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        NN.ConvNormAct1d(3, 4, 1)(torch.randn(1, 3, 1))
