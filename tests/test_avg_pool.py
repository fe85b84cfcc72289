"""Average pooling beside its specs: exact sums, special values, every kernel, modules, and the errors."""

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
from convnorm.testing import assert_accurate, assert_same
from tests.isas import ISAS

NAN, INF = float("nan"), float("inf")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
LAYOUTS = ["contiguous", "channels_last"]


def pools(stem, n):
    return getattr(CF, f"{stem}{n}d"), getattr(F, f"{stem}{n}d")


def arranged(x, layout):
    return x.contiguous(memory_format=FORMATS[x.dim()]) if layout == "channels_last" and x.dim() > 3 else x


# --- exact where sums are exact -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "stem, kwargs",
    [
        ("avg_pool", {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("avg_pool", {"kernel_size": (2, 5), "padding": (0, 2), "ceil_mode": True, "count_include_pad": False}),
        ("avg_pool", {"kernel_size": 7, "stride": 3, "divisor_override": 11}),
        ("adaptive_avg_pool", {"output_size": 1}),
        ("adaptive_avg_pool", {"output_size": (7, 5)}),
        ("adaptive_avg_pool", {"output_size": (3, 20)}),
    ],
)
def test_integers_are_exact(stem, kwargs, layout, dtype):
    """Sums of integers are exact in any order, and the quotient is rounded once.

    torch's adaptive pooling divides twice in places, so it is asked for doubles there.
    """
    x = arranged(torch.randint(-99, 100, (2, 19, 16, 13)).to(dtype), layout)
    ours, theirs = pools(stem, 2)
    if stem == "adaptive_avg_pool":
        want = theirs(x.double(), **kwargs)
        assert_same(ours(x, **kwargs).float(), want.float())
    else:
        assert_same(ours(x, **kwargs), theirs(x, **kwargs))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("divisor", [None, 4])
def test_gradients_that_divide_evenly_are_exact(layout, divisor):
    x = arranged(torch.randn(2, 19, 13, 12), layout).requires_grad_()
    kwargs = {"kernel_size": 3, "stride": 2, "padding": 1, "divisor_override": divisor}
    ours, theirs = (f(x, **kwargs) for f in pools("avg_pool", 2))
    g = 36.0 * torch.randint(-9, 10, theirs.shape)
    assert_same(torch.autograd.grad(ours, x, g)[0], torch.autograd.grad(theirs, x, g)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_special_values(layout):
    x = torch.randint(-1, 2, (2, 19, 13, 12)).float()
    chosen = torch.rand(x.shape)
    x[chosen < 0.02], x[chosen > 0.98], x[(chosen > 0.5) & (chosen < 0.52)] = NAN, INF, -INF
    x = arranged(x, layout)
    assert_same(CF.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1))
    for size in (1, (4, 5), (20, 20)):
        assert_same(CF.adaptive_avg_pool2d(x, size), F.adaptive_avg_pool2d(x.double(), size).float())


def test_large_means_lose_nothing():
    """Of a million ones plus noise, one chain of float additions would lose three digits."""
    x = 1 + torch.rand(1, 8, 1024, 1024)
    for given_x in (x, x.contiguous(memory_format=torch.channels_last)):
        for ours, theirs in (
            (CF.adaptive_avg_pool2d(given_x, 1), F.adaptive_avg_pool2d(x, 1)),
            (CF.avg_pool2d(given_x, 1024), F.adaptive_avg_pool2d(x, 1)),
        ):
            assert_accurate(ours, theirs, x.double().mean((2, 3), keepdim=True))


# --- any geometry -------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    n = draw(st.integers(1, 3))
    each = lambda low, high: [draw(st.integers(low, high)) for _ in range(n)]  # noqa: E731
    shape = [draw(st.integers(0, 2)), draw(st.sampled_from([1, 3, 8, 9, 17])), *each(1, 35 if n < 3 else 9)]
    if draw(st.booleans()):
        stem, kwargs = "adaptive_avg_pool", {"output_size": each(0, 12)}
    else:
        kernel = each(1, 6)
        stem, kwargs = (
            "avg_pool",
            {
                "kernel_size": kernel,
                "stride": draw(st.one_of(st.none(), st.just(each(1, 5)))),
                "padding": [draw(st.integers(0, k // 2)) for k in kernel],
                "ceil_mode": draw(st.booleans()),
                "count_include_pad": draw(st.booleans()),
            },
        )
        if n > 1:
            kwargs["divisor_override"] = draw(st.sampled_from([None, None, 7, -2]))
    return {
        "stem": stem,
        "shape": shape,
        "kwargs": kwargs,
        "layout": draw(st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"])),
        "expanded": draw(st.booleans()),
        "isa": draw(st.sampled_from(["generic", "auto"])),
    }


@given(problems())
def test_as_torch_on_any_geometry(problem):
    x = torch.randn(problem["shape"], dtype=torch.float64)
    ours, theirs = pools(problem["stem"], x.dim() - 2)
    if problem["layout"] == "sliced":
        x = torch.stack([x, -x], -1)[..., 0]
    elif problem["layout"] == "transposed":
        x = x.transpose(1, -1).contiguous().transpose(1, -1)
    else:
        x = arranged(x, problem["layout"])
    try:
        want = theirs(x.requires_grad_(), **problem["kwargs"])
    except RuntimeError:
        with pytest.raises(RuntimeError, match=rf"^{problem['stem']}{x.dim() - 2}d: "):
            ours(x, **problem["kwargs"])
        return
    with convnorm.backends.using_isa(problem["isa"]):
        got = ours(x, **problem["kwargs"])
        torch.testing.assert_close(got, want)
        if not want.numel():
            return
        grad = torch.randn_like(want)
        grad = grad[:, :, :1].expand_as(grad) if problem["expanded"] else grad
        torch.testing.assert_close(torch.autograd.grad(got, x, grad)[0], torch.autograd.grad(want, x, grad)[0])


# --- kernels ------------------------------------------------------------------------------------------------


def kernels(op):
    return [k["kernel"] for k in convnorm.backends.kernels(op) if k["isa"] in ISAS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "stem, kwargs",
    [
        ("avg_pool", {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
        ("avg_pool", {"kernel_size": 17, "stride": 3, "padding": 8}),
        ("adaptive_avg_pool", {"output_size": (7, 25)}),
    ],
)
def test_every_kernel(stem, kwargs, layout, dtype):
    x = arranged(torch.randn(1, 18, 19, 31).to(dtype), layout).requires_grad_()
    ours, theirs = pools(stem, 2)
    want, exact = theirs(x, **kwargs), theirs(x.double(), **kwargs)
    grad = torch.randn_like(want)
    want_grad = torch.autograd.grad(want, x, grad)[0]
    exact_grad = torch.autograd.grad(theirs(x.double(), **kwargs), x, grad.double())[0]
    if dtype == torch.float64:  # torch's own error is its float32 one, scaled
        want = theirs(x.float(), **kwargs)
        leaf = x.detach().float().requires_grad_()
        want_grad = torch.autograd.grad(theirs(leaf, **kwargs), leaf, grad.float())[0]
    elif dtype == torch.float32:
        leaf = x.detach().double().requires_grad_()
        exact_grad = torch.autograd.grad(theirs(leaf, **kwargs), leaf, grad.double())[0]
    ran = set()
    with convnorm.backends.using_isa(convnorm._C.supported_isa()):
        for name in kernels("avg_pool_forward") + kernels("avg_pool_backward"):
            backward = "backward" in name
            with convnorm.backends.force(**{f"avg_pool_{'backward' if backward else 'forward'}": name}):
                try:
                    got = ours(x, **kwargs)
                    got_grad = torch.autograd.grad(got, x, grad)[0]
                except RuntimeError as refused:
                    assert "no kernel accepts" in str(refused)
                    continue
            assert_accurate(got.detach(), want.detach(), exact.detach(), name)
            assert_accurate(got_grad, want_grad, exact_grad, name)
            ran.add(name)
    for stem in ("avg_pool", "avg_pool_backward"):
        assert {f"{stem}_planes_generic", f"{stem}_direct"} <= ran
        assert (f"{stem}_channels_generic" in ran) == (layout == "channels_last")


@pytest.mark.parametrize("planes, side", [((1, 8), 3), ((2, 9), 7), ((3, 7), 14), ((2, 16), 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_planes_as_runs(planes, side, dtype):
    x = torch.randint(-9, 10, (*planes, side, side)).to(dtype)
    want = x.double().mean((2, 3), keepdim=True).to(dtype)
    for isa in ("generic", "auto"):
        with convnorm.backends.using_isa(isa):
            for function, size in ((CF.adaptive_avg_pool2d, 1), (CF.avg_pool2d, side)):
                convnorm._C.trace_begin()
                assert_same(function(x, size), want)
                (chosen,) = [row["kernel"] for row in convnorm._C.trace_end() if row["chosen"]]
                assert chosen.startswith("avg_pool_runs" if isa == "generic" and side in (5, 7) else "avg_pool_")


# --- modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, shape", [(1, (2, 3, 12)), (2, (2, 3, 9, 8)), (3, (2, 3, 6, 7, 8))])
@pytest.mark.parametrize(
    "kind, arguments",
    [
        ("AvgPool", {"kernel_size": 3}),
        ("AvgPool", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
        ("AdaptiveAvgPool", {"output_size": 1}),
        ("AdaptiveAvgPool", {"output_size": 5}),
    ],
)
def test_modules(kind, arguments, n, shape):
    ours, theirs = (getattr(m, f"{kind}{n}d")(**arguments) for m in (CN, nn))
    assert repr(ours) == repr(theirs) and isinstance(ours, type(theirs)) and not ours.state_dict()
    converted = convnorm.convert(copy.deepcopy(theirs))
    assert type(converted) is type(ours)
    x = torch.randint(-9, 10, shape).float()
    for module in (ours, converted, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        for sample in (x, x[0]):  # batched and not
            assert_same(module(sample), theirs(sample.double()).float())


def test_none_keeps_the_inputs_size():
    x = torch.randint(-9, 10, (2, 3, 6, 7, 8)).float()
    for size in ((None, None, None), (None, 2, None), (4, None, 3)):
        assert_same(CN.AdaptiveAvgPool3d(size)(x), nn.AdaptiveAvgPool3d(size)(x.double()).float())
    assert CF.adaptive_avg_pool2d(x[0], (None, 2)).shape == (3, 6, 7, 2)


def test_nothing_is_kept_for_the_backward():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        CF.avg_pool2d(torch.randn(1, 2, 8, 8, requires_grad=True), 2)
        CF.adaptive_avg_pool2d(torch.randn(1, 2, 8, 8, requires_grad=True), 3)
    assert not saved


# --- errors -------------------------------------------------------------------------------------------------

ERRORS = [  # shape, arguments, the text after "avg_pool2d: "
    ((1, 2, 8, 8), {"kernel_size": 0, "stride": 1}, r"kernel_size 0 \(height\) must be greater than zero"),
    ((1, 2, 8, 8), {"kernel_size": 3, "stride": (1, 0)}, r"stride 0 \(width\) must be greater than zero"),
    ((1, 2, 8, 8), {"kernel_size": 3, "padding": -1}, r"padding -1 \(height\) must be non-negative"),
    ((1, 2, 8, 8), {"kernel_size": 3, "padding": 2}, r"padding 2 \(height\) must be at most half"),
    ((1, 2, 9, 2), {"kernel_size": 3, "stride": 2}, r"output width \(0\) = \(in 2 \+ 2\*pad 0 - k 3\)/stride 2"),
    ((1, 2, 8, 8), {"kernel_size": 3, "divisor_override": 0}, "divisor_override 0 must not be zero"),
    ((2, 0, 8, 8), {"kernel_size": 3}, r"input of size \(2, 0, 8, 8\) has dimension 1 of size zero"),
    ((2, 3, 0, 8), {"kernel_size": 3}, r"has dimension 2 of size zero"),
    ((1, 1, 1, 3, 8), {"kernel_size": 3}, r"expected 3D .* or 4D .* input"),
    ((1, 2, 8, 8), {"kernel_size": (3, 3, 3)}, r"kernel_size \(3, 3, 3\) must be an int or 2"),
    ((1, 2, 8, 8), {"kernel_size": 3, "stride": (1, 1, 1)}, r"stride \(1, 1, 1\) must be"),
]


@pytest.mark.parametrize("shape, kwargs, message", ERRORS, ids=[row[2] for row in ERRORS])
def test_errors(shape, kwargs, message):
    with pytest.raises(Exception) as theirs:
        F.avg_pool2d(torch.zeros(shape), **kwargs)
    with pytest.raises(theirs.type, match=rf"^avg_pool2d: .*{message}"):
        CF.avg_pool2d(torch.zeros(shape), **kwargs)


ADAPTIVE_ERRORS = [  # dimensions, shape, output_size, the text after "adaptive_avg_pool<n>d: "
    (2, (1, 2, 8, 8), -1, r"output_size -1 \(height\) must be greater than or equal to 0"),
    (2, (1, 2, 8, 0), 2, "has dimension 3 of size zero; only the batch and channels may be empty"),
    (3, (1, 0, 8, 8, 8), 2, "has dimension 1 of size zero; only the batch may be empty"),
    (2, (1, 2, 8, 8), (2,), r"output_size \(2,\) must be an int or 2 ints"),
    (2, (1, 2, 8, 8), (2, 2, 2, 2), "Input dimension should be at least 5"),
    (2, (1, 2, 8, 8), None, "output_size None must be an int or 2 ints"),
    (1, (1, 2, 8), (None,), r"output_size \(None,\) must be an int or 1 ints"),
    (1, (1, 2, 8), (2, 2), r"output_size \(2, 2\) must be an int or 1 ints"),
    (2, (8, 8), 2, "expected 3D .* or 4D .* input"),
]


@pytest.mark.parametrize("n, shape, size, message", ADAPTIVE_ERRORS, ids=[row[3] for row in ADAPTIVE_ERRORS])
def test_adaptive_errors(n, shape, size, message):
    ours, theirs = pools("adaptive_avg_pool", n)
    with pytest.raises(Exception) as raised:
        theirs(torch.zeros(shape), size)
    with pytest.raises(raised.type, match=rf"^adaptive_avg_pool{n}d: .*{message}"):
        ours(torch.zeros(shape), size)


def test_no_channels_where_torch_takes_none():
    for n in (1, 2):
        x = torch.zeros(2, 0, *(4,) * n)
        ours, theirs = pools("adaptive_avg_pool", n)
        assert ours(x, 2).shape == theirs(x, 2).shape


def test_empty_output():
    """torch's own backward refuses it; the gradient of nothing is zero."""
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    for layout in LAYOUTS:
        out = CF.adaptive_avg_pool2d(arranged(x, layout), (0, 2))
        assert out.shape == F.adaptive_avg_pool2d(x, (0, 2)).shape
        assert not torch.autograd.grad(out, x, torch.zeros_like(out))[0].any()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int32])
def test_dtype_errors(dtype):
    x = torch.zeros(1, 1, 4, 4, dtype=dtype)
    for ours, theirs in (pools("avg_pool", 2), pools("adaptive_avg_pool", 2)):
        with pytest.raises(NotImplementedError):
            theirs(x, 2)
        with pytest.raises(NotImplementedError, match=f"avg_pool2d: input has dtype {dtype}"):
            ours(x, 2)


def test_backward_errors():
    ops = torch.ops.convnorm
    with pytest.raises(RuntimeError, match="avg_pool2d: window has 2 values, must have 6, kernel_size, stride"):
        ops.avg_pool_forward(torch.zeros(1, 2, 8, 8), [2, 2], False, True, None)
    with pytest.raises(RuntimeError, match=r"avg_pool2d_backward: grad_output of size \(1, 2, 4, 3\), must be"):
        ops.avg_pool_backward(torch.zeros(1, 2, 4, 3), [1, 2, 8, 8], [2, 2, 2, 2, 0, 0], False, True, None, False)
    with pytest.raises(RuntimeError, match=r"adaptive_avg_pool2d_backward: grad_output of size .* must be"):
        ops.adaptive_avg_pool_backward(torch.zeros(1, 3, 4, 3), [1, 2, 8, 8], False)
