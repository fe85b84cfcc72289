"""Max pooling beside its spec: indices, ties, NaN and -inf, every kernel, modules, and the errors."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import convnorm
import convnorm.functional as CF
import convnorm.nn as CN
from convnorm.testing import assert_same
from tests.isas import ISAS

NAN, INF = float("nan"), float("inf")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def pools(n):
    return getattr(CF, f"max_pool{n}d"), getattr(F, f"max_pool{n}d")


def assert_equals_torch(x, grad_kind="plain", **kwargs):
    """Output, indices, and the gradients by offsets and by indices; torch gets a contiguous copy.

    (torch's own channels_last kernel for 3d loses the depth of an index where a window is -inf throughout.)
    """
    ours, theirs = pools(x.dim() - 2)
    plain = torch.empty(x.shape, dtype=x.dtype).copy_(x).requires_grad_()
    want, want_indices = theirs(plain, return_indices=True, **kwargs)
    grad = torch.randint(-4, 5, want.shape).to(x.dtype)
    if grad_kind == "expanded":
        grad = grad[:, :, :1].expand_as(grad)
    elif grad_kind == "transposed":
        grad = grad.transpose(0, -1).contiguous().transpose(0, -1)
    (want_grad,) = torch.autograd.grad(want, plain, grad)

    assert_same(ours(x, **kwargs), want.detach())
    leaf = x.detach().requires_grad_()
    out = ours(leaf, **kwargs)
    with_indices, indices = ours(leaf, return_indices=True, **kwargs)
    assert_same(indices, want_indices, "indices")
    for y in (out, with_indices):
        assert_same(y.detach(), want.detach())
        assert_same(torch.autograd.grad(y, leaf, grad)[0], want_grad, "grad_input")


# --- the definition of the maximum --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", ["ties", "nan", "all -inf", "-inf and nan", "signed zeros", "inf"])
def test_special_values(kind, layout, dtype):
    x = torch.randint(-1, 2, (2, 19, 13, 12)).to(dtype)
    chosen = torch.rand(x.shape)
    if "nan" in kind:
        x[chosen < 0.2] = NAN
    if "-inf" in kind:
        x[chosen > (-1 if kind == "all -inf" else 0.5)] = -INF
    if kind == "signed zeros":
        x = torch.where(chosen < 0.5, -0.0, 0.0).to(dtype)
    if kind == "inf":
        x[chosen < 0.3] = INF
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    assert_equals_torch(x, kernel_size=3, stride=2, padding=1)
    assert_equals_torch(x, kernel_size=(2, 5), stride=1, padding=(0, 2), dilation=(2, 1))
    assert_equals_torch(x, kernel_size=2)
    assert_equals_torch(x, kernel_size=(13, 12))
    want = F.max_pool2d(x, 3, 2, 1)
    assert torch.equal(torch.signbit(CF.max_pool2d(x, 3, 2, 1)), torch.signbit(want)) or "nan" in kind


def test_padding_is_never_chosen():
    _, indices = CF.max_pool2d(torch.full((1, 1, 4, 4), -INF), 3, 2, 1, return_indices=True)
    assert indices.flatten().tolist() == [0, 1, 4, 5]


def test_window_altogether_in_the_padding():
    """Padding 1 and dilation 6 step over an input of 5: -inf, and no gradient."""
    x = torch.randn(2, 3, 5, requires_grad=True)
    out, _ = CF.max_pool1d(x, 2, 1, 1, 6, return_indices=True)
    assert torch.equal(out, F.max_pool1d(x, 2, 1, 1, 6)) and bool((out == -INF).all())
    assert torch.autograd.grad(out.sum(), x)[0].count_nonzero() == 0
    assert torch.autograd.grad(CF.max_pool1d(x, 2, 1, 1, 6).sum(), x)[0].count_nonzero() == 0


@st.composite
def problems(draw):
    n = draw(st.integers(1, 3))
    each = lambda low, high: [draw(st.integers(low, high)) for _ in range(n)]  # noqa: E731
    kernel = each(1, 5)
    return {
        "shape": [
            draw(st.integers(0, 2)),
            draw(st.sampled_from([1, 3, 8, 9, 17])),
            *each(1, 35 if n < 3 else 9),
        ],
        "kernel_size": kernel,
        "stride": draw(st.sampled_from([None, each(1, 4)])),
        "padding": [draw(st.integers(0, k // 2)) for k in kernel],
        "dilation": each(1, 3),
        "ceil_mode": draw(st.booleans()),
        "dtype": draw(st.sampled_from(DTYPES)),
        "special": draw(st.sampled_from(["none", "nan", "-inf"])),
        "layout": draw(st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"])),
        "grad_kind": draw(st.sampled_from(["plain", "expanded", "transposed"])),
        "isa": draw(st.sampled_from(["generic", "auto"])),
    }


def some_window_misses(x, kernel_size, stride, padding, dilation, out):
    for k, s, p, d, size, outputs in zip(kernel_size, stride, padding, dilation, x[2:], out[2:], strict=True):
        for o in range(outputs):
            if not any(0 <= o * s - p + t * d < size for t in range(k)):
                return True
    return False


@given(problems())
def test_equals_torch_on_any_geometry(problem):
    shape, dtype, special, layout, isa, grad_kind = (
        problem.pop(k) for k in ("shape", "dtype", "special", "layout", "isa", "grad_kind")
    )
    x = torch.randint(-3, 4, shape).to(dtype)
    if special != "none":
        x[torch.rand(shape) < 0.3] = NAN if special == "nan" else -INF
    if layout == "channels_last":
        x = x.contiguous(memory_format=FORMATS.get(x.dim(), torch.contiguous_format))
    elif layout == "sliced":
        x = torch.stack([x, -x], -1)[..., 0]
    elif layout == "transposed":
        x = x.transpose(1, -1).contiguous().transpose(1, -1)
    ours, theirs = pools(x.dim() - 2)
    try:
        out = theirs(x, **problem)
    except RuntimeError:
        with pytest.raises(RuntimeError, match=rf"^max_pool{x.dim() - 2}d: "):
            ours(x, **problem)
        return
    stride = problem["stride"] or problem["kernel_size"]
    if some_window_misses(shape, problem["kernel_size"], stride, problem["padding"], problem["dilation"], out.shape):
        return  # torch's index is then outside the input, and so is its gradient
    with convnorm.backends.using_isa(isa):
        assert_equals_torch(x, grad_kind, **problem)


# --- kernels ------------------------------------------------------------------------------------------------

GEOMETRIES = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": (1, 6), "stride": (2, 1), "dilation": (1, 2)},
    {"kernel_size": 17, "stride": 3, "padding": 8},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": (19, 31)},
]


def runnable(op):
    return [k["kernel"] for k in convnorm.backends.kernels(op) if k["isa"] in ISAS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kwargs", GEOMETRIES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_kernel_gives_the_same_bits(layout, kwargs, dtype):
    x = torch.randint(-9, 10, (1, 18, 19, 31)).to(dtype)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    leaf = x.requires_grad_()
    with convnorm.backends.force(max_pool_forward="max_pool_direct", max_pool_backward="max_pool_backward_direct"):
        want, want_indices = CF.max_pool2d(leaf, return_indices=True, **kwargs)
        grad = torch.randn(want.shape).to(dtype)
        (want_grad,) = torch.autograd.grad(want, leaf, grad)
    ran = set()
    with convnorm.backends.using_isa(ISAS[-1]):
        for forward in runnable("max_pool_forward"):
            for backward in runnable("max_pool_backward"):
                with convnorm.backends.force(max_pool_forward=forward, max_pool_backward=backward):
                    try:
                        out, indices = CF.max_pool2d(leaf, return_indices=True, **kwargs)
                        by_indices = torch.autograd.grad(out, leaf, grad)[0]
                        by_offsets = torch.autograd.grad(CF.max_pool2d(leaf, **kwargs), leaf, grad)[0]
                    except RuntimeError as refused:
                        assert "no kernel accepts" in str(refused)
                        continue
                assert torch.equal(out, want) and torch.equal(indices, want_indices), forward
                assert torch.equal(by_indices, want_grad) and torch.equal(by_offsets, want_grad), backward
                ran |= {forward, backward}
    assert {"max_pool_rows_generic", "max_pool_backward_scatter"} <= ran


@pytest.mark.parametrize(
    "layout, kwargs, name, backward",
    [
        ("contiguous", {"kernel_size": 2}, "pairs", "pairs"),
        ("contiguous", {"kernel_size": 3, "stride": 2, "padding": 1}, "rows", "rows"),
        ("contiguous", {"kernel_size": 3}, "rows", "scatter"),
        ("channels_last", {"kernel_size": 2}, "channels", "tiles"),
        ("channels_last", {"kernel_size": 3, "stride": 2}, "channels", "channels"),
        ("contiguous", {"kernel_size": 8}, "planes", "planes"),
    ],
)
def test_choice(layout, kwargs, name, backward):
    x = torch.randn(1, 16, 8, 8).to(memory_format=getattr(torch, f"{layout}_format", torch.channels_last))
    convnorm._C.trace_begin()
    y = CF.max_pool2d(x.requires_grad_(), **kwargs)
    torch.autograd.grad(y, x, torch.ones_like(y))
    chosen = {row["op"]: row["kernel"] for row in convnorm._C.trace_end() if row["chosen"]}
    assert chosen["max_pool_forward"].startswith(f"max_pool_{name}")
    assert chosen["max_pool_backward"].startswith(f"max_pool_backward_{backward}")


def test_records_what_is_needed():
    x, window = torch.randn(1, 2, 20, 20), [2, 2, 2, 2, 0, 0, 1, 1]
    forward = torch.ops.convnorm.max_pool_forward
    assert [forward(x, window, False, r)[1].dtype for r in (0, 1, 2)] == [
        torch.uint8,
        torch.uint8,
        torch.int64,
    ]
    assert forward(x, window, False, 0)[1].numel() == 0
    assert forward(x, [17, 17, *window[2:]], False, 1)[1].dtype == torch.int32
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        CF.max_pool2d(x.requires_grad_(), 2)
    assert [t.dtype for t in saved] == [torch.uint8]


# --- derivatives and modules --------------------------------------------------------------------------------


def test_second_derivative_and_indices_in_one_graph():
    x = torch.randperm(2 * 3 * 8 * 8).double().view(2, 3, 8, 8).requires_grad_()
    for pool in (CF.max_pool2d, lambda *args: CF.max_pool2d(*args, return_indices=True)[0]):
        assert torch.autograd.gradcheck(pool, (x, 3, 2, 1), fast_mode=True)
        assert torch.autograd.gradgradcheck(pool, (x, 3, 2, 1), fast_mode=True)
    out, indices = CF.max_pool2d(x, 2, return_indices=True)
    assert out.requires_grad and not indices.requires_grad
    assert torch.equal(F.max_unpool2d(out, indices, 2), F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2))


def test_hessian_of_a_squared_pool():
    x = torch.randperm(16).double().view(1, 1, 4, 4)
    hessian = torch.func.hessian(lambda t: (CF.max_pool2d(t, 2) ** 2).sum())(x).view(16, 16)
    theirs = torch.func.hessian(lambda t: (F.max_pool2d(t, 2) ** 2).sum())(x).view(16, 16)
    assert torch.equal(hessian, theirs)


@pytest.mark.parametrize("n, shape", [(1, (2, 3, 12)), (2, (2, 3, 9, 8)), (3, (2, 3, 6, 7, 8))])
@pytest.mark.parametrize("arguments", [{}, {"stride": 1, "padding": 1, "dilation": 2}, {"ceil_mode": True}])
@pytest.mark.parametrize("return_indices", [False, True])
def test_modules(n, shape, arguments, return_indices):
    arguments = {"kernel_size": 3, "return_indices": return_indices} | arguments
    ours, theirs = (getattr(m, f"MaxPool{n}d")(**arguments) for m in (CN, nn))
    assert repr(ours) == repr(theirs) and isinstance(ours, type(theirs)) and not ours.state_dict()
    x = torch.randn(shape)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        for sample in (x, x[0]):  # batched and not
            got, want = module(sample), theirs(sample)
            if not return_indices:
                got, want = (got,), (want,)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_functional_twins(n):
    x = torch.randn(1, 2, *(8,) * n)
    ours, theirs = (getattr(m, f"max_pool{n}d_with_indices") for m in (CF, F))
    for a, b in zip(ours(x, 2, [], 1), theirs(x, 2, [], 1), strict=True):
        assert_same(a, b)


# --- errors -------------------------------------------------------------------------------------------------

ERRORS = [  # reason, shape, arguments, the text after "max_pool2d: "
    ("kernel 0", (1, 2, 8, 8), {"kernel_size": 0}, r"kernel_size 0 \(height\) must be greater than zero"),
    (
        "stride 0",
        (1, 2, 8, 8),
        {"kernel_size": 3, "stride": (1, 0)},
        r"stride 0 \(width\) must be greater than zero",
    ),
    (
        "stride -1",
        (1, 2, 8, 8),
        {"kernel_size": 3, "stride": -1},
        r"stride -1 \(height\) must be greater than zero",
    ),
    ("dilation 0", (1, 2, 8, 8), {"kernel_size": 3, "dilation": 0}, r"dilation 0 \(height\) must be greater"),
    (
        "padding -1",
        (1, 2, 8, 8),
        {"kernel_size": 3, "padding": -1},
        r"padding -1 \(height\) must be non-negative",
    ),
    (
        "padding 2 of 3",
        (1, 2, 8, 8),
        {"kernel_size": 3, "padding": 2},
        r"padding 2 \(height\) must be at most half",
    ),
    (
        "half, not of the dilated",
        (1, 2, 8, 8),
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        "at most half",
    ),
    (
        "kernel too large",
        (1, 2, 9, 2),
        {"kernel_size": 3, "stride": 2},
        r"output width \(0\) = \(in 2 \+ 2\*pad 0 - k 3\)/stride 2 \+ 1 must be >= 1",
    ),
    (
        "no channels",
        (2, 0, 8, 8),
        {"kernel_size": 3},
        r"input of size \(2, 0, 8, 8\) has dimension 1 of size zero",
    ),
    ("no rows", (2, 3, 0, 8), {"kernel_size": 3}, r"has dimension 2 of size zero"),
    ("two dimensions", (3, 8), {"kernel_size": 3}, r"expected 3D .* or 4D .* input"),
    (
        "three kernel sizes",
        (1, 2, 8, 8),
        {"kernel_size": (3, 3, 3)},
        r"kernel_size \(3, 3, 3\) must be an int or 2",
    ),
    ("three strides", (1, 2, 8, 8), {"kernel_size": 3, "stride": (1, 1, 1)}, r"stride \(1, 1, 1\) must be"),
]


@pytest.mark.parametrize("reason, shape, kwargs, message", ERRORS, ids=[row[0] for row in ERRORS])
def test_errors(reason, shape, kwargs, message):
    with pytest.raises(Exception) as theirs:
        F.max_pool2d(torch.zeros(shape), **kwargs)
    with pytest.raises(theirs.type, match=rf"^max_pool2d: .*{message}"):
        CF.max_pool2d(torch.zeros(shape), **kwargs)


def test_dtype_errors():
    with pytest.raises(NotImplementedError, match=r"max_pool2d: input has dtype torch.complex64"):
        CF.max_pool2d(torch.zeros(1, 1, 4, 4, dtype=torch.complex64), 2)
    with pytest.raises(NotImplementedError, match=r"max_pool2d: input has dtype torch.bool"):
        CF.max_pool2d(torch.zeros(1, 1, 4, 4, dtype=torch.bool), 2)


def test_backward_errors():
    ops, window = torch.ops.convnorm, [2, 2, 2, 2, 0, 0, 1, 1]
    grad, argmax = ops.max_pool_forward(torch.randn(1, 2, 8, 8), window, False, 1)
    with pytest.raises(RuntimeError, match=r"argmax of size .* does not belong to an input"):
        ops.max_pool_backward(grad, argmax, [1, 3, 8, 8], window)
    with pytest.raises(RuntimeError, match=r"max_pool2d_backward: argmax has height 4, must be 5"):
        ops.max_pool_backward(grad, argmax, [1, 2, 10, 8], window)
    with pytest.raises(RuntimeError, match="max_pool2d_backward: grad_output of size"):
        ops.max_pool_backward(grad[..., :2], argmax, [1, 2, 8, 8], window)
    with pytest.raises(RuntimeError, match="max_pool2d_gather: argmax has dtype int16"):
        ops.max_pool_gather(torch.randn(1, 2, 8, 8), argmax.short(), window)
    wide = [1, 300, 1, 300, 0, 0, 1, 1]
    with pytest.raises(RuntimeError, match="argmax of uint8 does not belong to a window of 300 positions"):
        ops.max_pool_backward(grad[..., :1], argmax[..., :1], [1, 2, 4, 300], wide)


def test_records_from_elsewhere_stay_inside_the_tensor():
    window = [2, 2, 2, 2, 0, 0, 1, 1]
    for argmax in (torch.full((1, 9, 4, 4), 255, dtype=torch.uint8), torch.full((1, 9, 4, 4), -7)):
        for layout in (torch.contiguous_format, torch.channels_last):
            a = argmax.contiguous(memory_format=layout)
            assert not torch.ops.convnorm.max_pool_backward(torch.ones(a.shape), a, [1, 9, 8, 8], window).any()
            assert not torch.ops.convnorm.max_pool_gather(torch.ones(1, 9, 8, 8), a, window).any()


def test_meta_device():
    x = torch.empty(2, 3, 9, 8, device="meta")
    out, indices = CF.max_pool2d(x, 3, 2, 1, ceil_mode=True, return_indices=True)
    assert out.shape == indices.shape == (2, 3, 5, 5) and out.is_meta and indices.dtype == torch.int64
