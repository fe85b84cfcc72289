"""Layer norm beyond the generic tests: accuracy of the statistics, modules, errors."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import convnorm
import convnorm.functional as CF
from convnorm.testing import assert_accurate
from tests.isas import isas

NN = convnorm.nn
WIDTHS = pytest.mark.parametrize("width", [6, 100, 1024, 9000])


def exact(x, **kwargs):
    return F.layer_norm(x.double(), x.shape[-1:], **kwargs)


def normalised(x, **kwargs):
    return CF.layer_norm(x, x.shape[-1:], **kwargs)


# --- accuracy -----------------------------------------------------------------------------------------------


@WIDTHS
@isas
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e5, 1e6])
def test_error_stays_below_1e5_for_any_mean(width, isa, offset):
    x = torch.randn(37, width) + offset
    with convnorm.backends.using_isa(isa):
        assert (normalised(x) - exact(x)).abs().max() < 1e-5


@WIDTHS
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_gradients_of_rows_far_from_zero(width, offset):
    x, w, g = torch.randn(37, width) + offset, torch.rand(width) + 0.5, torch.randn(37, width)

    def grads(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (x, w)]
        out = function(leaves[0], (width,), leaves[1])
        return torch.autograd.grad(out, leaves, g.to(dtype))

    for a, b in zip(grads(CF.layer_norm, torch.float32), grads(F.layer_norm, torch.float64), strict=True):
        assert (a - b).abs().max() < 1e-5 * max(1, b.abs().max())


def test_a_first_value_that_is_an_outlier():
    x = torch.randn(9, 600)
    x[:, 0] = -3e4
    assert (normalised(x) - exact(x)).abs().max() < 1e-5 * exact(x).abs().max()


@WIDTHS
@pytest.mark.parametrize("value", [1.2e10, 0.0, -7.1, 3e38, 1e-40])
def test_constants_become_the_bias_exactly(width, value):
    x, bias = torch.full((5, width), value), torch.randn(width)
    assert torch.equal(normalised(x, weight=torch.randn(width), bias=bias), bias.expand_as(x))


@WIDTHS
@pytest.mark.parametrize("scale", [1e30, 1e37, 1e-20, 1e-37, 1e-40])
def test_values_whose_squares_leave_float(width, scale):
    x = torch.randn(5, width) * scale
    for eps in (1e-5, 1e-70):
        reference = exact(x, eps=eps)
        assert (normalised(x, eps=eps) - reference).abs().max() <= 1e-6 * reference.abs().max()


def test_gradients_of_huge_values():
    x, g = torch.randn(5, 100) * 1e30, torch.randn(5, 100)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    (found,) = torch.autograd.grad(normalised(a), a, g)
    (expected,) = torch.autograd.grad(exact(b), b, g.double())
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_nan_stays_in_its_row():
    x = torch.randn(20, 50)
    x[3, 17] = torch.nan
    assert torch.equal(normalised(x).isnan().any(1), torch.arange(20) == 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_reference_kernel_agrees(dtype):
    x, g = (torch.randn(7, 43, dtype=torch.float64).to(dtype) for _ in range(2))
    w, b = (torch.rand(43, dtype=torch.float64).to(dtype) for _ in range(2))

    def run():
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = CF.layer_norm(leaves[0], (43,), *leaves[1:])
        return y, *torch.autograd.grad(y, leaves, g)

    with convnorm.backends.force(layer_norm_forward="layer_norm_reference", layer_norm_backward="layer_norm_reference"):
        slow = run()
    for a, b in zip(run(), slow, strict=True):
        assert torch.allclose(a, b, rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


def test_float32_parameters_with_16_bit_input():
    x, w, b = torch.randn(6, 40).bfloat16(), torch.rand(40), torch.randn(40)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    y = CF.layer_norm(x, (40,), w, b)
    grads = torch.autograd.grad(y.sum(), leaves)
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.float32]
    assert_accurate(y, F.layer_norm(x, (40,), w, b), F.layer_norm(x.double(), (40,), w.double(), b.double()))


# --- modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"elementwise_affine": False}, {"bias": False}, {"eps": 0.1}], ids=str)
def test_modules_are_torchs_modules(options):
    theirs, x = torch.nn.LayerNorm((5, 6), **options), torch.randn(3, 5, 6)
    ours = NN.LayerNorm((5, 6), **options)
    for p in theirs.parameters():
        torch.nn.init.uniform_(p)
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, torch.nn.LayerNorm) and repr(ours) == repr(theirs)
    converted = convnorm.convert(copy.deepcopy(theirs))
    assert type(converted) is NN.LayerNorm and type(convnorm.revert(converted)) is torch.nn.LayerNorm
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), convnorm.convert(converted)):
        assert torch.allclose(twin(x), theirs(x), atol=1e-6)


def test_per_sample_gradients():
    x, w, b = torch.randn(4, 6, 5), torch.rand(5), torch.randn(5)
    loss = lambda w, b, x: CF.layer_norm(x, (5,), w, b).square().sum()  # noqa: E731
    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), (None, None, 0))(w, b, x)
    for i in range(4):
        for a, e in zip(found, torch.func.grad(loss, argnums=(0, 1))(w, b, x[i]), strict=True):
            assert torch.allclose(a[i], e, rtol=1e-5, atol=1e-5)


def test_explain_names_the_kernel():
    told = convnorm.explain(NN.LayerNorm(40), torch.randn(3, 40), backward=True)
    assert [c.op for c in told.calls] == ["layer_norm_forward", "layer_norm_backward"]
    assert all(k.startswith("layer_norm_rows_") for k in told.kernels)
    long = convnorm.explain(NN.LayerNorm(20000), torch.randn(3, 20000), backward=True)
    assert long.kernels[1].startswith("layer_norm_columns_")


# --- errors: torch's classes and words ----------------------------------------------------------------------

X = torch.randn(2, 3, 4)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (
            (X, [3]),
            RuntimeError,
            r"normalized_shape=\[3\], expected input with shape \[\*, 3\], but got input of size\[2, 3, 4\]",
        ),
        ((X, [5, 2, 3, 4]), RuntimeError, "but got input of size"),
        ((X, []), RuntimeError, "normalized_shape to be at least 1-dimensional"),
        (
            (X, [4], torch.ones(3)),
            RuntimeError,
            r"weight to be of same shape as normalized_shape, but got weight of shape \[3\]",
        ),
        ((X, [3, 4], torch.ones(4)), RuntimeError, "Expected weight to be of same shape"),
        ((X, [4], None, torch.ones(3)), RuntimeError, "Expected bias to be of same shape"),
        ((X, [4], torch.ones(4).double()), RuntimeError, "mixed dtype"),
        ((X.bfloat16(), [4], torch.ones(4).half()), RuntimeError, "mixed dtype"),
        ((X.long(), [4]), NotImplementedError, "int64"),
        ((X.to(torch.complex64), [4]), NotImplementedError, "complex64"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        CF.layer_norm(*arguments)
    with pytest.raises((error, RuntimeError)):
        F.layer_norm(*arguments)


def test_empty_batch_gives_zero_gradients():
    w = torch.ones(4, requires_grad=True)
    (grad,) = torch.autograd.grad(CF.layer_norm(X[:0], (4,), w).sum(), w)
    assert not grad.any()
