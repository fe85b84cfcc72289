"""Adaptive max pooling and un-pooling beside their specs: ties, NaN, indices, every kernel, modules, errors."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convnorm
import convnorm.functional as CF
import convnorm.nn as CN
from convnorm.testing import assert_same
from tests.isas import ISAS

NAN, INF = float("nan"), float("inf")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
LAYOUTS = ["contiguous", "channels_last"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def pools(stem, n):
    return getattr(CF, f"{stem}{n}d"), getattr(F, f"{stem}{n}d")


def arranged(x, layout):
    return x.contiguous(memory_format=FORMATS[x.dim()]) if layout == "channels_last" and x.dim() > 3 else x


# --- adaptive -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["ties", "nan", "all -inf", "-inf and nan"])
def test_special_values(kind, layout, dtype):
    x = torch.randint(-1, 2, (2, 19, 13, 12)).to(dtype)
    chosen = torch.rand(x.shape)
    if "nan" in kind:
        x[chosen < 0.2] = NAN
    if "-inf" in kind:
        x[chosen > (-1 if kind == "all -inf" else 0.5)] = -INF
    leaf = arranged(x, layout).requires_grad_()
    for size in (1, (1, 12), (4, 5), (13, 12), (20, 3)):
        want, want_indices = F.adaptive_max_pool2d(x.detach(), size, return_indices=True)
        out, indices = CF.adaptive_max_pool2d(leaf, size, return_indices=True)
        assert_same(indices, want_indices, "indices")
        assert_same(out.detach(), want)
        assert_same(CF.adaptive_max_pool2d(leaf.detach(), size), want)
        grad = torch.randint(-4, 5, want.shape).to(dtype)
        whole = leaf.detach().requires_grad_()
        expected = torch.autograd.grad(F.adaptive_max_pool2d(whole, size), whole, grad)[0]
        assert_same(torch.autograd.grad(out, leaf, grad)[0], expected, "grad_input")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, (7, 25), (2, 1)])
def test_every_kernel_gives_the_same_bits(size, layout, dtype):
    op = "adaptive_max_pool_forward"
    x = arranged(torch.randint(-9, 10, (1, 18, 19, 31)).to(dtype), layout)
    want = F.adaptive_max_pool2d(x, size, return_indices=True)
    ran = set()
    with convnorm.backends.using_isa(ISAS[-1]):
        for row in convnorm.backends.kernels(op):
            if row["isa"] not in ISAS:
                continue
            with convnorm.backends.force(**{op: row["kernel"]}):
                try:
                    got = CF.adaptive_max_pool2d(x, size, return_indices=True)
                except RuntimeError as refused:
                    assert "no kernel accepts" in str(refused)
                    continue
            for a, b in zip(got, want, strict=True):
                assert torch.equal(a, b), row["kernel"]
            ran.add(row["kernel"])
    assert {"adaptive_max_pool_planes_generic", "adaptive_max_pool_direct"} <= ran
    assert ("adaptive_max_pool_channels_generic" in ran) == (layout == "channels_last")


def spread(grad, indices, shape):
    """The sums of the gradients at each index, of which those outside the plane add nothing."""
    positions = shape[2] * shape[3]
    at = torch.where((indices >= 0) & (indices < positions), indices, positions).flatten(2)
    sums = torch.zeros(*shape[:2], positions + 1, dtype=torch.float64)
    return sums.scatter_add_(2, at, grad.flatten(2).double())[..., :positions].reshape(shape).to(grad.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_every_backward_kernel_gives_the_same_bits(size, dense, layout, dtype):
    """More channels than a slab and planes than a block, no multiple of a vector; -0, and indices from elsewhere."""
    op, shape = "adaptive_max_pool_backward", (2, 530, 3, 5)
    grad = torch.randint(-4, 5, (*shape[:2], *size)).to(dtype)
    grad[:, ::3] = -0.0
    indices = torch.randint(0, 15, grad.shape)
    indices[:, ::7], indices[:, 1::11], indices[:, 2::13] = -1, 15, (1 << 32) + 3
    want = spread(grad, indices, shape)
    grad, indices = arranged(grad, layout), arranged(indices, layout)
    if not dense:
        grad = grad.repeat_interleave(2, 1)[:, ::2]
    ran = set()
    for row in convnorm.backends.kernels(op):
        if row["isa"] not in ISAS:
            continue
        for threads in (1, 4):
            torch.set_num_threads(threads)
            with convnorm.backends.force(**{op: row["kernel"]}):
                try:
                    got = torch.ops.convnorm.adaptive_max_pool_backward(grad, indices, shape, layout != "contiguous")
                except RuntimeError as refused:
                    assert "no kernel accepts" in str(refused)
                    continue
            assert torch.equal(got, want), row["kernel"]
            assert not torch.signbit(got[got == 0]).any(), row["kernel"]
            ran.add(row["kernel"])
    assert f"{op}_scatter" in ran
    assert (f"{op}_channels_generic" in ran) == (layout == "channels_last" and size == (1, 1) and dense)


def test_indices_are_kept_only_when_needed():
    x, saved = torch.randn(1, 2, 8, 8), []
    assert torch.ops.convnorm.adaptive_max_pool_forward(x, [3, 3], False)[1].numel() == 0
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        CF.adaptive_max_pool2d(x.requires_grad_(), 3)
    assert [t.shape for t in saved] == [(1, 2, 3, 3)]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_functional_twins(n):
    x = torch.randn(1, 2, *(8,) * n)
    ours, theirs = (getattr(m, f"adaptive_max_pool{n}d_with_indices") for m in (CF, F))
    for a, b in zip(ours(x, 3), theirs(x, 3), strict=True):
        assert_same(a, b)


def test_empty_output():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    out = CF.adaptive_max_pool2d(x, (0, 2))
    assert out.shape == F.adaptive_max_pool2d(x, (0, 2)).shape
    assert not torch.autograd.grad(out, x, torch.zeros_like(out))[0].any()


# --- un-pooling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_overlapping_windows_and_back(n, layout, dtype):
    """Windows that share a maximum give one index twice, with the same value; the gradient goes to both."""
    x = arranged(torch.randn(2, 19, *(9, 8, 7)[:n]).to(dtype), layout)
    pooled, indices = CF.__dict__[f"max_pool{n}d"](x, 3, 2, 1, return_indices=True)
    ours, theirs = pools("max_unpool", n)
    size = x.shape[2:]
    leaf = pooled.detach().requires_grad_()
    got, want = (f(leaf, indices, 3, 2, 1, output_size=size) for f in (ours, theirs))
    assert_same(got.detach(), want.detach())
    grad = torch.randint(-9, 10, want.shape).to(dtype)
    assert_same(torch.autograd.grad(got, leaf, grad)[0], torch.autograd.grad(want, leaf, grad)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_several_values_at_one_index_the_last_stays(layout):
    x = arranged(torch.arange(2 * 70 * 6.0).view(2, 70, 2, 3), layout)
    indices = torch.full(x.shape, 5)
    torch.set_num_threads(1)
    assert_same(CF.max_unpool2d(x, indices, 2), F.max_unpool2d(x, indices, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_index_outside_is_named(layout):
    x, indices = torch.ones(2, 70, 4, 4), torch.zeros(2, 70, 4, 4, dtype=torch.int64)
    indices[0, 69, 3, 3], indices[1, 0, 0, 0] = -3, 64
    x, indices = arranged(x, layout), arranged(indices, layout)
    for threads in (1, 4):
        torch.set_num_threads(threads)
        with pytest.raises(RuntimeError, match=r"^max_unpool2d: found an invalid max index -3 .* in \[0, 64\)"):
            CF.max_unpool2d(x, indices, 2)
    with pytest.raises(RuntimeError, match="invalid max index"):
        F.max_unpool2d(x, indices, 2)
    with pytest.raises(RuntimeError, match="invalid max index 64"):
        CF.max_unpool2d(x[1:], indices[1:], 2)


def test_indices_from_elsewhere_stay_inside_the_tensor():
    for indices in (torch.full((1, 9, 4, 4), 1 << 40), torch.full((1, 9, 4, 4), -7)):
        for layout in LAYOUTS:
            i = arranged(indices, layout)
            values = torch.ones(i.shape)
            assert not torch.ops.convnorm.adaptive_max_pool_backward(values, i, [1, 9, 8, 8], False).any()
            assert not torch.ops.convnorm.max_unpool_backward(torch.ones(1, 9, 8, 8), i).any()


# --- modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, shape", [(1, (2, 3, 12)), (2, (2, 3, 9, 8)), (3, (2, 3, 6, 7, 8))])
@pytest.mark.parametrize("size", [1, 5, None])
@pytest.mark.parametrize("return_indices", [False, True])
def test_adaptive_modules(return_indices, size, n, shape):
    size = (None,) * (n - 1) + (2,) if size is None else size
    ours, theirs = (getattr(m, f"AdaptiveMaxPool{n}d")(size, return_indices) for m in (CN, nn))
    assert repr(ours) == repr(theirs) and isinstance(ours, type(theirs)) and not ours.state_dict()
    converted = convnorm.convert(copy.deepcopy(theirs))
    assert type(converted) is type(ours)
    x = torch.randn(shape)
    for module in (ours, converted, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        for sample in (x, x[0]):  # batched and not
            got, want = module(sample), theirs(sample)
            for a, b in zip(got, want, strict=True) if return_indices else [(got, want)]:
                assert_same(a, b)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_unpool_modules(n):
    ours, theirs = (getattr(m, f"MaxUnpool{n}d")(2, stride=2) for m in (CN, nn))
    assert repr(ours) == repr(theirs) and isinstance(ours, type(theirs))
    assert type(convnorm.convert(copy.deepcopy(theirs))) is type(ours)
    for side in (6, 7):
        x = torch.randn(2, 3, *(side,) * n)
        pooled, indices = getattr(F, f"max_pool{n}d")(x, 2, return_indices=True)
        for size in (x.shape, x.shape[2:], list(x.shape[2:]), *([None] if side == 6 else [])):
            assert_same(ours(pooled, indices, size), theirs(pooled, indices, size))
            if size is not x.shape:
                assert_same(ours(pooled[0], indices[0], size), theirs(pooled[0], indices[0], size))


# --- errors -------------------------------------------------------------------------------------------------

ADAPTIVE_ERRORS = [  # dimensions, shape, output_size, the text after "adaptive_max_pool<n>d: "
    (2, (1, 2, 8, 8), -1, r"output_size -1 \(height\) must be greater than or equal to 0"),
    (2, (1, 2, 8, 0), 2, "has dimension 3 of size zero; only the batch may be empty"),
    (2, (1, 0, 8, 8), 2, "has dimension 1 of size zero"),
    (2, (1, 2, 8, 8), (2,), r"output_size \(2,\) must be an int or 2 ints"),
    (2, (1, 2, 8, 8), (2, 2, 2, 2), "Input dimension should be at least 5"),
    (2, (1, 2, 8, 8), None, "output_size None must be an int or 2 ints"),
    (1, (1, 2, 8), (None,), r"output_size \(None,\) must be an int or 1 ints"),
    (2, (8, 8), 2, r"expected 3D .* or 4D .* input"),
]


@pytest.mark.parametrize("n, shape, size, message", ADAPTIVE_ERRORS, ids=[row[3] for row in ADAPTIVE_ERRORS])
def test_adaptive_errors(n, shape, size, message):
    ours, theirs = pools("adaptive_max_pool", n)
    with pytest.raises(Exception) as raised:
        theirs(torch.zeros(shape), size)
    with pytest.raises(raised.type, match=rf"^adaptive_max_pool{n}d: .*{message}"):
        ours(torch.zeros(shape), size)


def index(*shape):
    return torch.zeros(shape, dtype=torch.int64)


UNPOOL_ERRORS = [  # dimensions, shape, indices, arguments, the text after "max_unpool<n>d: "
    (2, (1, 2, 4, 4), index(1, 2, 4, 4).int(), {}, "elements in indices should be type int64 but got: int32"),
    (2, (1, 2, 4, 4), index(1, 2, 4, 3), {}, r"indices of size \(1, 2, 4, 3\) must have the input's size"),
    (2, (1, 2, 4, 4), index(2, 4, 4), {}, r"indices of size \[2, 4, 4\] must have input's size"),
    (2, (1, 0, 4, 4), index(1, 0, 4, 4), {}, "dimension 1 of size zero"),
    (2, (4, 4), index(4, 4), {}, r"expected 3D .* or 4D .* input"),
    (2, (1, 2, 4, 4), index(1, 2, 4, 4), {"output_size": (10, 8)}, "invalid output_size .* between 6 and 10"),
    (2, (1, 2, 4, 4), index(1, 2, 4, 4), {"output_size": (8, 8, 8)}, "should have 2 or 4 elements, not 3"),
    (2, (1, 2, 4, 4), index(1, 2, 4, 4), {"stride": -1}, "must contain non-negative spatial dimensions"),
    (3, (1, 2, 4, 4, 4), index(1, 2, 4, 4, 4), {"stride": 0}, "strides should be greater than zero"),
]


@pytest.mark.parametrize("n, shape, indices, kwargs, message", UNPOOL_ERRORS, ids=[r[4] for r in UNPOOL_ERRORS])
def test_unpool_errors(n, shape, indices, kwargs, message):
    ours, theirs = pools("max_unpool", n)
    with pytest.raises(Exception) as raised:
        theirs(torch.zeros(shape), indices, 2, **kwargs)
    with pytest.raises(raised.type, match=rf"^max_unpool{n}d: .*{message}"):
        ours(torch.zeros(shape), indices, 2, **kwargs)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int64])
def test_dtype_errors(dtype):
    x = torch.zeros(1, 1, 4, 4, dtype=dtype)
    for stem, arguments in (("adaptive_max_pool", (2,)), ("max_unpool", (index(1, 1, 4, 4), 2))):
        ours, theirs = pools(stem, 2)
        with pytest.raises(NotImplementedError):
            theirs(x, *arguments)
        with pytest.raises(NotImplementedError, match=f"{stem}2d: input has dtype {dtype}"):
            ours(x, *arguments)


def test_backward_errors():
    ops = torch.ops.convnorm
    with pytest.raises(RuntimeError, match=r"adaptive_max_pool2d_backward: indices of size .* do not belong"):
        ops.adaptive_max_pool_backward(torch.zeros(1, 2, 3, 3), index(1, 2, 3, 3), [1, 3, 8, 8], False)
    with pytest.raises(RuntimeError, match="adaptive_max_pool2d_backward: grad_output of size"):
        ops.adaptive_max_pool_backward(torch.zeros(1, 2, 3, 2), index(1, 2, 3, 3), [1, 2, 8, 8], False)
    with pytest.raises(RuntimeError, match=r"max_unpool2d_backward: indices of size .* do not belong"):
        ops.max_unpool_backward(torch.zeros(1, 3, 8, 8), index(1, 2, 3, 3))
