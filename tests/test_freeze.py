"""Frozen convolutions: the same bits from weights that are packed once."""

import copy
import io

import pytest
import torch
from torch import nn

import convnorm
import convnorm.nn as CN
from convnorm import backends, explain
from convnorm.testing import assert_same
from tests.isas import isas
from tests.specs import LAYOUTS

ops = torch.ops.convnorm
CASES = {  # input, weight, stride, padding, dilation, groups
    "1x1": ((2, 40, 9, 9), (70, 40, 1, 1), 1, 0, 1, 1),
    "winograd by tiles": ((4, 32, 24, 24), (40, 32, 3, 3), 1, 1, 1, 1),
    "winograd by filters": ((1, 300, 8, 8), (50, 300, 3, 3), 1, 1, 1, 1),
    "winograd in 3d": ((1, 35, 6, 8, 8), (40, 35, 3, 3, 3), 1, 1, 1, 1),
    "winograd dilated": ((1, 64, 16, 16), (64, 64, 3, 3), 1, 2, 2, 1),
    "winograd strided": ((4, 70, 40, 50), (70, 70, 3, 3), 2, 1, 1, 1),
    "winograd strided, by filters": ((2, 280, 30, 40), (128, 280, 3, 3), 2, 1, 1, 1),
    "turned": ((4, 336, 7, 7), (336, 336, 1, 1), 1, 0, 1, 1),
    "strided": ((2, 16, 15, 15), (33, 16, 3, 3), 2, 1, 1, 1),
    "stem": ((1, 3, 40, 40), (24, 3, 7, 7), 2, 3, 1, 1),
    "grouped": ((2, 64, 10, 10), (64, 32, 3, 3), 1, 1, 1, 2),
    "depthwise": ((2, 16, 10, 10), (16, 1, 3, 3), 1, 1, 1, 16),
    "1d": ((2, 16, 50), (20, 16, 5), 1, 2, 1, 1),
}


def geometry_of(shape, stride, padding, dilation, groups):
    n = len(shape) - 2
    return [stride] * n, [padding] * (2 * n), [dilation] * n, groups


def layout_of(t, layout):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.contiguous(memory_format=formats[t.dim()]) if layout == "channels_last" and t.dim() > 3 else t


@pytest.mark.winograd
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_packed_weights_give_the_same_bits(name, layout, dtype):
    shape, filters, *rest = CASES[name]
    x, w = layout_of(torch.randn(shape, dtype=dtype), layout), layout_of(torch.randn(filters, dtype=dtype), layout)
    bias, geometry = torch.randn(filters[0], dtype=dtype), geometry_of(shape, *rest)
    packed = ops.conv_pack(x, w, *geometry)
    kernel = explain(ops.conv_act, x, w, bias, None, *geometry, True, packed).kernels[0]
    assert (packed.numel() > 0) == kernel.startswith(("conv_igemm", "conv_tiles", "conv_winograd"))
    assert name.split()[0] != "winograd" or dtype != torch.float32 or kernel.startswith("conv_winograd")
    residual = torch.randn_like(ops.conv_forward(x, w, bias, *geometry))
    for r, relu in ((None, False), (residual, True)):
        frozen = ops.conv_act(
            x, torch.full_like(w, torch.nan) if packed.numel() else w, bias, r, *geometry, relu, packed
        )
        assert_same(frozen, ops.conv_act(x, w, bias, r, *geometry, relu))


@isas
def test_every_instruction_set(isa):
    x, conv = torch.randn(2, 24, 13, 13), CN.Conv2d(24, 37, 3, padding=1).eval()
    frozen = copy.deepcopy(conv)
    convnorm.freeze(frozen)
    with torch.no_grad():
        frozen(x)
        with backends.using_isa(isa):
            assert_same(frozen(x), conv(x))


@pytest.mark.parametrize("shape, elements", [((2, 3, 5, 5), 3), ((2, 3, 5, 6), 1), ((0, 3, 5, 5), None)])
def test_packed_weights_of_another_problem_are_refused(shape, elements):
    x, w, geometry = torch.randn(shape), torch.randn(4, 3, 3, 3), geometry_of(shape, 1, 1, 1, 1)
    if elements is None:  # nothing to compute, and nothing packed
        assert ops.conv_pack(x, w, *geometry).numel() == 0
        return
    for wrong in (torch.zeros(elements), torch.zeros(elements, dtype=torch.uint8)):
        with pytest.raises(RuntimeError, match=r"conv_act: packed \(.*must be the \d+ bytes"):
            ops.conv_act(x, w, None, None, *geometry, False, wrong)


def test_the_op_is_complete():
    x, w, geometry = torch.randn(2, 8, 9, 9), torch.randn(12, 8, 3, 3), geometry_of((2, 8, 9, 9), 1, 1, 1, 1)
    packed = ops.conv_pack(x, w, *geometry)
    torch.library.opcheck(ops.conv_act.default, (x, w, None, None, *geometry, True, packed))
    torch.library.opcheck(ops.conv_pack.default, (x, w, *geometry))


def small():
    return nn.Sequential(
        CN.Conv2d(8, 16, 3, padding=1), CN.ConvAct2d(16, 16, 1),
        CN.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        CN.Conv2d(16, 16, 3, groups=16), CN.ConvTranspose2d(16, 8, 2), nn.Conv2d(8, 4, 1),
    ).eval()  # fmt: skip


def test_a_model():
    model, x = small(), torch.randn(2, 8, 12, 12)
    with torch.no_grad():
        before = model(x)
        report = convnorm.freeze(model)
        assert report.frozen == ["0", "1", "2", "3"] and report.bytes == 0
        for _ in range(2):
            assert_same(model(x), before)
        size = report.bytes
        assert size >= sum(4 * model[i].weight.numel() for i in (0, 1, 2))
        assert_same(model(torch.cat([x, x]))[:2], before)  # a batch of another size packs the same
        assert report.bytes == size
        text = str(report)
        assert "4 of 6 convolutions frozen" in text and f"{size:,} bytes" in text
        assert "a transposed convolution" in text and "convnorm.convert" in text
        convnorm.unfreeze(model)
        assert all(getattr(m, "_packs", None) is None for m in model)
        assert_same(model(x), before)


def packs_of(module, *inputs):
    """Packed tensors after a call of a module frozen anew, all calls in no_grad."""
    convnorm.freeze(module)
    with torch.no_grad():
        for x in inputs:
            module(x)
    return [p for p in module._packs._packs.values() if p is not None]


def test_weights_are_packed_once():
    conv, x = CN.Conv2d(8, 12, 3).eval(), torch.randn(1, 8, 9, 9)
    assert len(packs_of(conv, x, x, x.clone())) == 1
    two = packs_of(conv, x, torch.randn(3, 8, 9, 9))
    assert len(two) == 2 and two[0] is two[1]
    assert len({id(p) for p in packs_of(conv, x, x.to(memory_format=LAYOUTS["channels_last"][4]))}) == 2
    many = [torch.randn(1, 8, 9, 9 + i) for i in range(20)]
    assert len(packs_of(conv, *many)) == 16  # the oldest went


@pytest.mark.parametrize("change", ["copy_", "load_state_dict", "an optimizer", "another tensor", "double"])
def test_changed_weights_are_packed_again(change):
    conv, other, x = CN.Conv2d(8, 12, 3).eval(), CN.Conv2d(8, 12, 3).eval(), torch.randn(1, 8, 9, 9)
    packs_of(conv, x)
    if change == "copy_":
        with torch.no_grad():
            conv.weight.copy_(other.weight)
    elif change == "load_state_dict":
        conv.load_state_dict(other.state_dict())
    elif change == "an optimizer":
        conv(x).sum().backward()
        torch.optim.SGD(conv.parameters(), lr=0.1).step()
    elif change == "another tensor":
        conv.weight = other.weight
    else:
        conv, x = conv.double(), x.double()
    plain = copy.deepcopy(conv)
    convnorm.unfreeze(plain)
    with torch.no_grad():
        assert_same(conv(x), plain(x))


def test_a_write_through_data_is_seen_after_another_freeze():
    conv, x = CN.Conv2d(8, 12, 3, bias=False).eval(), torch.randn(1, 8, 9, 9)
    packs_of(conv, x)
    conv.weight.data.zero_()
    convnorm.freeze(conv)
    with torch.no_grad():
        assert conv(x).count_nonzero() == 0


def test_gradients_and_transforms_are_as_before():
    conv, x = CN.ConvAct2d(8, 12, 3).eval(), torch.randn(2, 8, 9, 9)
    plain = copy.deepcopy(conv)
    convnorm.freeze(conv)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    conv(a).square().sum().backward()
    plain(b).square().sum().backward()
    assert_same(a.grad, b.grad)
    assert_same(conv.weight.grad, plain.weight.grad)
    with torch.no_grad():
        assert_same(torch.vmap(conv)(x[:, None])[:, 0], plain(x))
        assert_same(torch.compile(conv, backend="eager", fullgraph=True)(x), plain(x))
        assert_same(torch.jit.trace(conv, x, check_trace=False)(x), plain(x))
        assert_same(torch.export.export(conv, (x,)).module()(x), plain(x))
        assert_same(torch.fx.symbolic_trace(conv)(x), plain(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(conv(x), plain(x))
    assert len(conv._packs._packs) == 0


def test_copies_and_pickles_are_frozen_and_empty():
    conv, x = CN.Conv2d(8, 12, 3).eval(), torch.randn(1, 8, 9, 9)
    packs_of(conv, x)
    buffer = io.BytesIO()
    torch.save(conv, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(conv), torch.load(buffer, weights_only=False)):
        assert other._packs is not conv._packs and other._packs.bytes() == 0
        with torch.no_grad():
            assert_same(other(x), conv(x))
    assert set(conv.state_dict()) == {"weight", "bias"}


def test_made_and_used_in_inference_mode():
    with torch.inference_mode():
        conv, x = CN.Conv2d(8, 12, 3).eval(), torch.randn(1, 8, 9, 9)
        plain = copy.deepcopy(conv)
        convnorm.freeze(conv)
        assert_same(conv(x), plain(x))
        assert_same(conv(x[0]), plain(x)[0])


def test_a_fused_network():
    model, x = convnorm.models.resnet18(num_classes=10, width=8).eval(), torch.randn(1, 3, 64, 64)
    fused = convnorm.fuse(model, x)
    with torch.inference_mode():
        before = fused(x)
        assert len(convnorm.freeze(fused).frozen) == 20
        assert_same(fused(x), before)


def test_wrong_arguments():
    with pytest.raises(RuntimeError, match="freeze: the model is in training mode"):
        convnorm.freeze(small().train())
    with pytest.raises(ValueError, match="matches no module"):
        convnorm.freeze(small(), exclude="nowhere")
    report = convnorm.freeze(small(), exclude=["0", CN.ConvAct2d])
    assert report.frozen == ["2", "3"] and "excluded" in str(report)
