"""Batch norm beyond the generic tests: accuracy of the statistics, modules, running buffers, errors."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F

import convnorm
import convnorm.functional as CF
from tests.isas import isas

NN = convnorm.nn
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
PAIRS = [
    (NN.BatchNorm1d, torch.nn.BatchNorm1d, (6, 5, 7)),
    (NN.BatchNorm1d, torch.nn.BatchNorm1d, (6, 5)),
    (NN.BatchNorm2d, torch.nn.BatchNorm2d, (4, 5, 6, 7)),
    (NN.BatchNorm3d, torch.nn.BatchNorm3d, (3, 5, 2, 4, 3)),
]


def normalised(x, **kwargs):
    return CF.batch_norm(x, None, None, training=True, **kwargs)


def exact(x, **kwargs):
    return F.batch_norm(x.double(), None, None, training=True, **kwargs)


# --- accuracy -----------------------------------------------------------------------------------------------


@LAYOUTS
@isas
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e5, 1e6])
def test_error_stays_below_1e5_for_any_mean(layout, isa, offset):
    x = (torch.randn(4, 20, 30, 31) + offset).to(memory_format=layout)
    with convnorm.backends.using_isa(isa):
        assert (normalised(x) - exact(x)).abs().max() < 1e-5


@LAYOUTS
def test_error_stays_small_when_images_differ(layout):
    x = torch.randn(8, 16, 24, 24) + torch.tensor([0, 1e3, -1e3, 5, 0, 1e3, 7e2, 1]).view(8, 1, 1, 1)
    x[0, :, 0, 0] = -3e4  # the first element, an outlier, is where the first shift comes from
    x = x.to(memory_format=layout)
    assert (normalised(x) - exact(x)).abs().max() < 1e-5 * exact(x).abs().max()


@LAYOUTS
@pytest.mark.parametrize("value", [1.2e10, 0.0, -7.1, 3e38, 1e-40])
def test_constants_become_the_bias_exactly(layout, value):
    x = torch.full((4, 9, 13, 17), value).to(memory_format=layout)
    assert not normalised(x).any()
    bias = torch.randn(9)
    expected = bias.view(1, 9, 1, 1).expand_as(x)
    assert torch.equal(normalised(x, weight=torch.randn(9), bias=bias), expected)


@LAYOUTS
@pytest.mark.parametrize("scale", [1e30, 1e37, 1e-20, 1e-37])
def test_values_whose_squares_leave_float(layout, scale):
    x = (torch.randn(4, 9, 13, 17) * scale).to(memory_format=layout)
    for eps in (1e-5, 1e-76):
        reference = exact(x, eps=eps)
        assert (normalised(x, eps=eps) - reference).abs().max() <= 1e-6 * reference.abs().max()


@LAYOUTS
def test_subnormals(layout):
    x = (torch.randn(4, 9, 13, 17) * 1e-40).to(memory_format=layout)
    assert (normalised(x) - exact(x)).abs().max() <= 1e-6 * exact(x).abs().max()


@LAYOUTS
def test_nan_stays_in_its_channel_and_passes_relu(layout):
    x = torch.randn(2, 9, 5, 5).to(memory_format=layout)
    x[1, 3, 2, 2] = torch.nan
    y = CF.batch_norm_act(x, None, None, training=True)
    assert y[:, 3].isnan().all() and y.isnan().sum() == y[:, 3].numel()


def test_weight_sigma_and_bias_mean_recover_the_identity():
    x = torch.randn(64, 10) * 3 + 5
    weight = (x.var(0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(normalised(x, weight=weight, bias=x.mean(0)), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_reference_kernel_agrees(layout, dtype):
    x, r, g = (torch.randn(3, 11, 6, 5, dtype=torch.float64).to(dtype, memory_format=layout) for _ in range(3))
    w = torch.rand(11, dtype=torch.float64).to(dtype)

    def run():
        leaves = [t.clone().requires_grad_() for t in (x, w, r)]
        y = CF.batch_norm_act(leaves[0], None, None, leaves[1], training=True, residual=leaves[2])
        return y, *torch.autograd.grad(y, leaves, g)

    with convnorm.backends.force(batch_norm_train="batch_norm_reference", batch_norm_backward="batch_norm_reference"):
        slow = run()
    for a, b in zip(run(), slow, strict=True):
        assert torch.allclose(a, b, rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


def test_float32_parameters_with_16_bit_input():
    x = torch.randn(4, 6, 5, 5).bfloat16().requires_grad_()
    w, b = torch.rand(6).requires_grad_(), torch.randn(6).requires_grad_()
    mean, var = torch.zeros(6), torch.ones(6)
    y = CF.batch_norm(x, mean, var, w, b, training=True)
    grads = torch.autograd.grad(y.sum(), (x, w, b))
    assert y.dtype == torch.bfloat16 and [g.dtype for g in grads] == [
        torch.bfloat16,
        torch.float32,
        torch.float32,
    ]
    assert torch.allclose(mean, 0.1 * x.detach().float().mean((0, 2, 3)), atol=1e-7)


# --- modules ------------------------------------------------------------------------------------------------


def pair(ours, theirs, **kwargs):
    a, b = ours(5, **kwargs), theirs(5, **kwargs)
    if b.affine:
        with torch.no_grad():
            b.weight.uniform_(0.5, 1.5)
            b.bias.uniform_(-1, 1)
    a.load_state_dict(b.state_dict())
    return a, b


def same_buffers(a, b):
    for (name, left), (_, right) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.allclose(left, right, rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize("ours, theirs, shape", PAIRS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"momentum": 0.0},
        {"track_running_stats": False},
        {"affine": False},
        {"eps": 0.1},
    ],
    ids=str,
)
def test_modules_follow_torch_through_training_and_inference(ours, theirs, shape, options):
    a, b = pair(ours, theirs, **options)
    for step in range(3):
        x = torch.randn(shape) * (step + 1) + step
        assert torch.allclose(a(x), b(x), atol=1e-5)
        same_buffers(a, b)
    a.eval(), b.eval()
    assert torch.allclose(a(x), b(x), atol=1e-5)
    same_buffers(a, b)


@pytest.mark.parametrize("ours, theirs, shape", PAIRS[1:])
def test_modules_are_torchs_modules(ours, theirs, shape):
    a, b = pair(ours, theirs)
    assert isinstance(a, theirs) and repr(a) == repr(b)
    x = torch.randn(shape)
    file = io.BytesIO()
    torch.save(a.state_dict(), file)
    file.seek(0)
    theirs(5).load_state_dict(torch.load(file))
    for twin in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        assert torch.equal(twin.eval()(x), copy.deepcopy(a).eval()(x))
    with pytest.raises(ValueError, match="expected"):
        a(torch.randn(5))


def test_fused_modules():
    layer = NN.BatchNormAct2d(5)
    assert "act='relu'" in repr(layer) and isinstance(layer, torch.nn.BatchNorm2d)
    assert layer.state_dict().keys() == torch.nn.BatchNorm2d(5).state_dict().keys()
    plain, x, r = torch.nn.BatchNorm2d(5), torch.randn(4, 5, 6, 7), torch.randn(4, 5, 6, 7)
    assert torch.allclose(layer(x, residual=r), torch.relu(plain(x) + r), atol=1e-6)
    assert torch.allclose(layer(x), torch.relu(plain(x)), atol=1e-6)
    same_buffers(layer, plain)
    assert torch.allclose(NN.BatchNormAct2d(5, act=None)(x, r), torch.nn.BatchNorm2d(5)(x) + r, atol=1e-6)
    with pytest.raises(ValueError, match="'gelu' must be 'relu' or None"):
        NN.BatchNormAct1d(5, act="gelu")


def test_compiled_training_updates_the_buffers():
    eager, x = NN.BatchNormAct2d(5), torch.randn(4, 5, 6, 7)
    twin = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (4, 3):
        a, b = (x[:n].clone().requires_grad_() for _ in range(2))
        eager(a).square().sum().backward()
        compiled(b).square().sum().backward()
        assert torch.equal(a.grad, b.grad)
    same_buffers(eager, twin)
    assert torch.equal(eager.weight.grad, twin.weight.grad) and twin.num_batches_tracked == 2


def test_func_grad_and_vmap_over_a_stack_of_models():
    x, w, b = torch.randn(3, 6, 4, 5), torch.rand(3, 4), torch.randn(3, 4)
    mean, var = torch.zeros(3, 4), torch.ones(3, 4)

    def loss(w, b, mean, var, x):
        return CF.batch_norm_act(x, mean, var, w, b, training=True).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(w, b, mean, var, x)
    for i in range(3):
        m, v = torch.zeros(4), torch.ones(4)
        assert torch.allclose(found[i], torch.func.grad(loss)(w[i], b[i], m, v, x[i]), rtol=1e-5, atol=1e-5)
        assert torch.allclose(mean[i], 0.1 * x[i].mean((0, 2))) and torch.allclose(var[i], 0.9 + 0.1 * x[i].var((0, 2)))


def test_only_what_backward_needs_is_kept():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        x = torch.randn(4, 5, 6, 7, requires_grad=True)
        CF.batch_norm_act(x, None, None, torch.ones(5, requires_grad=True), training=True)
    assert sum(t.numel() == x.numel() for t in kept) == 1 and not any(t.dtype == torch.bool for t in kept)


# --- errors: torch's classes and words; nothing is written --------------------------------------------------


X, MEAN, VAR = torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (
            (torch.randn(1, 3), None, None, None, None, True),
            ValueError,
            r"Expected more than 1 value per channel when training, got input size torch.Size\(\[1, 3\]\)",
        ),
        (
            (X, torch.zeros(4), VAR, None, None, True),
            RuntimeError,
            "running_mean should contain 3 elements not 4",
        ),
        (
            (X, MEAN, torch.ones(4), None, None, True),
            RuntimeError,
            "running_var should contain 3 elements not 4",
        ),
        ((X, MEAN, VAR, torch.ones(2)), RuntimeError, "weight should contain 3 elements not 2"),
        ((X, MEAN, VAR, None, torch.ones(2)), RuntimeError, "bias should contain 3 elements not 2"),
        ((X, None, None), RuntimeError, "running_mean must be defined in evaluation mode"),
        ((X, MEAN, None), RuntimeError, "running_var must be defined in evaluation mode"),
        ((X, MEAN, None, None, None, True), ValueError, "must either both be None or neither be None"),
        (
            (X, MEAN, VAR, None, None, True, 0.1, 0.0),
            ValueError,
            "eps must be positive during training, but got 0",
        ),
        ((X, MEAN, VAR, None, None, False, 0.1, -1.0), ValueError, "eps must be non-negative, but got -1"),
        ((X, MEAN, VAR, torch.ones(3).double()), RuntimeError, "mixed dtype"),
        ((X, MEAN.double(), VAR.double(), None, None, True), RuntimeError, "mixed dtype"),
        ((X.double(), MEAN, VAR), RuntimeError, "mixed dtype"),
        ((X.long(), MEAN, VAR), NotImplementedError, "int64"),
        ((torch.randn(3), MEAN, VAR), RuntimeError, "must be \\(n, c\\)"),
    ],
)
def test_errors_and_untouched_statistics(arguments, error, words):
    mean, var = MEAN.clone(), VAR.clone()
    swap = {id(MEAN): mean, id(VAR): var}
    with pytest.raises(error, match=words):
        CF.batch_norm(*(swap.get(id(a), a) for a in arguments))
    assert torch.equal(mean, MEAN) and torch.equal(var, VAR)


def test_a_wrong_residual_or_act_is_refused():
    with pytest.raises(RuntimeError, match="residual of size"):
        CF.batch_norm_act(X, MEAN, VAR, residual=X[:1])
    with pytest.raises(RuntimeError, match="residual has dtype"):
        CF.batch_norm_act(X, MEAN, VAR, residual=X.double())
    with pytest.raises(ValueError, match="act 'tanh'"):
        CF.batch_norm_act(X, MEAN, VAR, act="tanh")


def test_unmapped_running_statistics_are_refused_under_vmap():
    with pytest.raises(RuntimeError):
        torch.func.vmap(lambda x: CF.batch_norm(x, MEAN, VAR, training=True))(torch.randn(2, 4, 3, 5))


def test_empty_batch_leaves_running_statistics_and_gives_zero_gradients():
    mean, var, w = MEAN.clone(), VAR.clone(), torch.ones(3, requires_grad=True)
    y = CF.batch_norm(X[:0], mean, var, w, training=True)
    (grad,) = torch.autograd.grad(y.sum(), w)
    assert y.shape == (0, 3, 4, 4) and not grad.any()
    assert torch.equal(mean, MEAN) and torch.equal(var, VAR)
