"""Group and instance norm beyond the generic tests: accuracy of the statistics, modules, running buffers, errors."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F

import convnorm
import convnorm.functional as CF
from convnorm.testing import assert_accurate
from tests.isas import isas

NN = convnorm.nn
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
GROUPS = pytest.mark.parametrize("groups", [1, 4, 20], ids=lambda g: f"{g} groups")


def exact(x, groups, **kwargs):
    """Contiguous: torch's channels_last loses digits to the mean in double, too."""
    return F.group_norm(x.double().contiguous(), groups, **kwargs)


# --- accuracy -----------------------------------------------------------------------------------------------


@LAYOUTS
@GROUPS
@isas
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e5, 1e6])
def test_error_stays_below_1e5_for_any_mean(layout, groups, isa, offset):
    x = (torch.randn(3, 20, 30, 31) + offset).to(memory_format=layout)
    with convnorm.backends.using_isa(isa):
        assert (CF.group_norm(x, groups) - exact(x, groups)).abs().max() < 1e-5


@LAYOUTS
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_gradients_of_groups_far_from_zero(layout, offset):
    x, g = ((torch.randn(3, 20, 13, 11) + o).to(memory_format=layout) for o in (offset, 0.0))
    w = torch.rand(20) + 0.5

    def grads(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (x, w)]
        return torch.autograd.grad(function(leaves[0], 4, weight=leaves[1]), leaves, g.to(dtype))

    for a, b in zip(grads(CF.group_norm, torch.float32), grads(exact, torch.float64), strict=True):
        assert (a - b).abs().max() < 1e-5 * max(1, b.abs().max())


@LAYOUTS
@GROUPS
def test_a_first_value_that_is_an_outlier(layout, groups):
    x = torch.randn(2, 20, 24, 24)
    x[:, :, 0, 0] = -3e4
    x = x.to(memory_format=layout)
    expected = exact(x, groups)
    assert (CF.group_norm(x, groups) - expected).abs().max() < 1e-5 * expected.abs().max()


@LAYOUTS
@GROUPS
@pytest.mark.parametrize("value", [1.2e10, 0.0, -7.1, 3e38, 1e-40])
def test_constants_become_the_bias_exactly(layout, groups, value):
    x, bias = torch.full((2, 20, 13, 17), value).to(memory_format=layout), torch.randn(20)
    expected = bias.view(1, 20, 1, 1).expand_as(x)
    assert torch.equal(CF.group_norm(x, groups, torch.randn(20), bias), expected)


@LAYOUTS
@GROUPS
@pytest.mark.parametrize("scale", [1e30, 1e37, 1e-20, 1e-37, 1e-40])
def test_values_whose_squares_leave_float(layout, groups, scale):
    x = (torch.randn(2, 20, 13, 17) * scale).to(memory_format=layout)
    for eps in (1e-5, 1e-70):
        reference = exact(x, groups, eps=eps)
        assert (CF.group_norm(x, groups, eps=eps) - reference).abs().max() <= 1e-6 * reference.abs().max()


@LAYOUTS
def test_gradients_of_huge_values(layout):
    x, g = ((torch.randn(2, 20, 9, 8) * s).to(memory_format=layout) for s in (1e30, 1.0))
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    (found,) = torch.autograd.grad(CF.group_norm(a, 4), a, g)
    (expected,) = torch.autograd.grad(exact(b, 4), b, g.double())
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@LAYOUTS
def test_nan_stays_in_its_group(layout):
    x = torch.randn(2, 20, 5, 5).to(memory_format=layout)
    x[1, 7, 2, 2] = torch.nan
    y = CF.group_norm(x, 5)
    assert y[1, 4:8].isnan().all() and y.isnan().sum() == y[1, 4:8].numel()


@LAYOUTS
@GROUPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_reference_kernel_agrees(layout, groups, dtype):
    x, g = (torch.randn(3, 20, 6, 5, dtype=torch.float64).to(dtype, memory_format=layout) for _ in range(2))
    w, b = (torch.rand(20, dtype=torch.float64).to(dtype) for _ in range(2))

    def run():
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = CF.group_norm(leaves[0], groups, *leaves[1:])
        return y, *torch.autograd.grad(y, leaves, g)

    with convnorm.backends.force(group_norm_forward="group_norm_reference", group_norm_backward="group_norm_reference"):
        slow = run()
    for a, b in zip(run(), slow, strict=True):
        # grad_weight and grad_bias are sums of 90 terms, in the reference one after the other.
        assert torch.allclose(a, b, rtol=4 * torch.finfo(dtype).eps, atol=90 * torch.finfo(dtype).eps)


def test_float32_parameters_with_16_bit_input():
    x, w, b = torch.randn(2, 6, 5, 5).bfloat16(), torch.rand(6), torch.randn(6)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    y = CF.group_norm(x, 3, w, b)
    grads = torch.autograd.grad(y.sum(), leaves)
    assert [g.dtype for g in (y, *grads)] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert_accurate(y, F.group_norm(x, 3, w, b), exact(x, 3, weight=w.double(), bias=b.double()))


def test_bias_without_weight():
    """torch's own backward fails here: tensor does not have a device."""
    x, b, g = torch.randn(2, 6, 5), torch.randn(6, requires_grad=True), torch.randn(2, 6, 5)
    y = CF.group_norm(x, 3, None, b)
    assert torch.allclose(y, F.group_norm(x, 3, torch.ones(6), b), atol=1e-6)
    assert torch.allclose(torch.autograd.grad(y, b, g)[0], g.sum((0, 2)), atol=1e-5)


# --- layouts ------------------------------------------------------------------------------------------------


def test_channels_last_is_read_and_written_as_it_is():
    x = torch.randn(2, 8, 5, 4).to(memory_format=torch.channels_last).requires_grad_()
    for function in (lambda t: CF.group_norm(t, 4), CF.instance_norm):
        y = function(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        (grad,) = torch.autograd.grad(y, x, torch.randn(2, 8, 5, 4))
        assert grad.is_contiguous(memory_format=torch.channels_last)
    volume = torch.randn(2, 8, 3, 5, 4).to(memory_format=torch.channels_last_3d)
    assert CF.group_norm(volume, 4).is_contiguous(memory_format=torch.channels_last_3d)


def test_explain_names_the_kernel():
    for layout, method in ((torch.contiguous_format, "planes"), (torch.channels_last, "rows")):
        x = torch.randn(2, 8, 5, 4).to(memory_format=layout)
        told = convnorm.explain(NN.GroupNorm(4, 8), x, backward=True)
        assert [c.op for c in told.calls] == ["group_norm_forward", "group_norm_backward"]
        assert all(k.startswith(f"group_norm_{method}_") for k in told.kernels)


# --- modules ------------------------------------------------------------------------------------------------

INSTANCE = [
    (NN.InstanceNorm1d, torch.nn.InstanceNorm1d, (3, 5, 7)),
    (NN.InstanceNorm2d, torch.nn.InstanceNorm2d, (3, 5, 6, 7)),
    (NN.InstanceNorm3d, torch.nn.InstanceNorm3d, (3, 5, 2, 4, 3)),
]


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.1}], ids=str)
def test_group_norm_modules(options):
    theirs, x = torch.nn.GroupNorm(3, 6, **options), torch.randn(2, 6, 5, 4)
    ours = NN.GroupNorm(3, 6, **options)
    for p in theirs.parameters():
        torch.nn.init.uniform_(p)
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, torch.nn.GroupNorm) and repr(ours) == repr(theirs)
    converted = convnorm.convert(copy.deepcopy(theirs))
    assert type(converted) is NN.GroupNorm and type(convnorm.revert(converted)) is torch.nn.GroupNorm
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), convnorm.convert(converted)):
        assert torch.allclose(twin(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize("ours, theirs, shape", INSTANCE)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine": True},
        {"track_running_stats": True},
        {"track_running_stats": True, "affine": True, "momentum": None},
        {"track_running_stats": True, "momentum": 1.0},
    ],
    ids=str,
)
def test_instance_norm_modules_follow_torch(ours, theirs, shape, options):
    a, b = ours(5, **options), theirs(5, **options)
    assert repr(a) == repr(b) and isinstance(a, theirs)
    a.load_state_dict(b.state_dict())
    for step in range(3):
        x = torch.randn(shape) * (step + 1) + step
        assert torch.allclose(a(x), b(x), atol=1e-5)
        assert torch.allclose(a(x[0]), b(x[0]), atol=1e-5), "unbatched"
    a.eval(), b.eval()
    assert torch.allclose(a(x), b(x), atol=1e-5)
    for (name, left), (_, right) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.allclose(left, right, rtol=1e-5, atol=1e-5), name
    assert type(convnorm.convert(b)) is ours and type(convnorm.revert(b)) is theirs


def test_instance_norm_modules_check_as_torch():
    with pytest.raises(ValueError, match="expected 3D or 4D input"):
        NN.InstanceNorm2d(5)(torch.randn(5, 5))
    with pytest.raises(ValueError, match="to match num_features"):
        NN.InstanceNorm2d(5, affine=True)(torch.randn(2, 4, 3, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        NN.InstanceNorm2d(5)(torch.randn(2, 4, 3, 3))
    assert any("does not match num_features" in str(w.message) for w in caught)


def test_compiled_training_updates_the_buffers():
    eager, x = NN.InstanceNorm2d(5, affine=True, track_running_stats=True), torch.randn(4, 5, 6, 7)
    twin = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    a, b = (x.clone().requires_grad_() for _ in range(2))
    eager(a).square().sum().backward()
    compiled(b).square().sum().backward()
    assert torch.equal(a.grad, b.grad) and torch.equal(eager.weight.grad, twin.weight.grad)
    assert torch.equal(eager.running_mean, twin.running_mean) and torch.equal(eager.running_var, twin.running_var)


# --- errors: torch's classes and words ----------------------------------------------------------------------

X = torch.randn(2, 6, 4, 5)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((X, 4), RuntimeError, r"divisible by num_groups, but got input of shape \[2, 6, 4, 5\] and num_groups=4"),
        ((X, -1), RuntimeError, "Expected num groups to be greater than 0, got -1"),
        ((torch.randn(6), 3), RuntimeError, "Expected at least 2 dimensions for input tensor but received 1"),
        ((torch.randn(1, 6), 6), ValueError, "Expected more than 1 value per channel when training"),
        ((X, 3, torch.ones(5)), RuntimeError, r"Expected weight to be a vector of size equal .* shape \[5\]"),
        ((X, 3, torch.ones(1, 6)), RuntimeError, r"Expected weight to be a vector of size equal .* shape \[1, 6\]"),
        ((X, 3, None, torch.ones(5)), RuntimeError, "Expected bias to be a vector of size equal"),
        ((X, 3, torch.ones(6).double()), RuntimeError, "mixed dtype"),
        ((X.long(), 3), NotImplementedError, "int64"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        CF.group_norm(*arguments)
    with pytest.raises(error):
        F.group_norm(*arguments)


MEAN, VAR = torch.zeros(6), torch.ones(6)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((X[:, :, :1, :1],), ValueError, "Expected more than 1 spatial element when training, got input size"),
        ((torch.randn(2, 6),), ValueError, r"more than 1 spatial element .* torch.Size\(\[2, 6\]\)"),
        ((X, None, None, None, None, False), RuntimeError, "running_mean and running_var to be defined when"),
        ((X, MEAN, None), ValueError, "must either both be None or neither be None"),
        ((X, torch.zeros(5), torch.ones(5)), RuntimeError, "running_mean should contain 6 elements not 5"),
        ((X, None, None, torch.ones(5)), RuntimeError, "Expected weight to be a vector"),
        ((X, None, None, torch.ones(6).double()), RuntimeError, "mixed dtype"),
        ((X.long(),), NotImplementedError, "int64"),
    ],
)
def test_instance_norm_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        CF.instance_norm(*arguments)
    with pytest.raises(error):
        F.instance_norm(*arguments)


def test_empty_batches_leave_running_statistics_and_give_zero_gradients():
    mean, var, w = MEAN.clone(), VAR.clone(), torch.ones(6, requires_grad=True)
    y = CF.instance_norm(X[:0], mean, var, w)
    assert y.shape == (0, 6, 4, 5) and not torch.autograd.grad(y.sum(), w)[0].any()
    assert torch.equal(mean, MEAN) and torch.equal(var, VAR)
    empty_images = torch.autograd.grad(CF.group_norm(X[:, :, :0], 3, w).sum(), w)
    assert not empty_images[0].any(), "torch's are NaN"
