"""Batch norm, relu and max pooling in one pass: the bits of the chain, what is kept, modules, errors."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import convnorm
import convnorm.functional as CF
from convnorm.testing import assert_same
from tests.isas import isas

NN = convnorm.nn
NAN, INF = float("nan"), float("inf")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
STEM = {"kernel_size": 3, "stride": 2, "padding": 1}


def chain(input, mean, var, weight, bias, training, act="relu", **window):
    y = CF.batch_norm_act(input, mean, var, weight, bias, training, act=act)
    return getattr(CF, f"max_pool{input.dim() - 2}d")(y, **window)


def fused(input, mean, var, weight, bias, training, act="relu", **window):
    return CF.batch_norm_act_max_pool(input, mean, var, weight, bias, training, act=act, **window)


def arranged(x, layout):
    if layout == "channels_last":
        return x.contiguous(memory_format=FORMATS.get(x.dim(), torch.contiguous_format))
    if layout == "sliced":
        return torch.stack([x, -x], -1)[..., 0]
    return x.transpose(1, -1).contiguous().transpose(1, -1) if layout == "transposed" else x


def results(function, x, training, grad_kind="plain", **kwargs):
    """Outputs, gradients and running statistics; the operands are the same every time."""
    generator = torch.Generator().manual_seed(3)
    channel = lambda: torch.randn(x.shape[1], generator=generator).to(x.dtype)  # noqa: E731
    leaves = [t.requires_grad_() for t in (x.detach(), channel(), channel())]
    mean, var = channel(), channel().abs() + 0.5
    out = function(leaves[0], mean, var, *leaves[1:], training, **kwargs)
    gradient = torch.randn(out.shape, generator=generator).to(out.dtype)
    if grad_kind == "expanded":
        gradient = gradient[:1, :1].expand_as(out)
    gradients = torch.autograd.grad(out, leaves, arranged(gradient, grad_kind))
    with torch.no_grad():
        unrecorded = function(leaves[0], mean.clone(), var.clone(), *leaves[1:], training, **kwargs)
    return dict(zip(("out", "input", "weight", "bias", "mean", "var", "unrecorded"),
                    (out, *gradients, mean, var, unrecorded), strict=True))  # fmt: skip


def assert_same_bits(x, training=True, **kwargs):
    """Of everything; equal gradients mean equal positions of the maxima."""
    want, found = (results(f, x, training, **kwargs) for f in (chain, fused))
    for what, value in want.items():
        assert_same(found[what], value, what)
        assert found[what].stride() == value.stride(), what


# --- the chain ----------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    n = draw(st.integers(1, 3))
    each = lambda low, high: [draw(st.integers(low, high)) for _ in range(n)]  # noqa: E731
    kernel = each(1, 4)
    return {
        "shape": [
            draw(st.sampled_from([2, 3])),
            draw(st.sampled_from([1, 3, 8, 9, 17])),
            *each(4 if n > 1 else 9, 24 if n < 3 else 9),
        ],
        "kernel_size": kernel,
        "stride": draw(st.sampled_from([None, each(1, 4)])),
        "padding": [draw(st.integers(0, k // 2)) for k in kernel],
        "dilation": each(1, 2),
        "ceil_mode": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])),
        "special": draw(st.sampled_from(["none", "ties", "nan"])),
        "layout": draw(st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"])),
        "grad_kind": draw(st.sampled_from(["plain", "expanded", "transposed"])),
        "isa": draw(st.sampled_from(["generic", "auto"])),
        "training": draw(st.booleans()),
        "act": draw(st.sampled_from(["relu", None])),
    }


@given(problems())
def test_the_bits_of_the_chain_on_any_geometry(problem):
    shape, dtype, special, layout, isa = (problem.pop(k) for k in ("shape", "dtype", "special", "layout", "isa"))
    x = torch.randn(shape).to(dtype) if special == "none" else torch.randint(-3, 4, shape).to(dtype)
    if special == "nan":
        x[torch.rand(shape) < 0.05] = NAN
    try:
        chain(x, None, None, None, None, True, None, **{k: problem[k] for k in (*STEM, "dilation", "ceil_mode")})
    except RuntimeError as refused:
        with pytest.raises(RuntimeError, match=r"^batch_norm_act_max_pool[123]d: ") as error:
            results(fused, x, **problem)
        assert str(error.value).split(": ", 1)[1] == str(refused).split(": ", 1)[1]
        return
    with convnorm.backends.using_isa(isa):
        assert_same_bits(arranged(x, layout), **problem)


LARGE = [
    ((2, 64, 66, 67), STEM),  # channel by channel
    ((2, 70, 90), {"kernel_size": 2}),
    ((6, 20, 28, 28), {"kernel_size": 2}),
    ((1, 3, 300, 310), STEM),  # bands of planes
    ((1, 3, 300, 310), {"kernel_size": 2, "dilation": 3, "stride": 3}),
    ((1, 9, 260, 250), {"kernel_size": 4, "stride": 4, "padding": 1}),
    ((2, 3, 190, 190), {"kernel_size": (2, 3), "stride": (3, 1)}),  # statistics in chunks
    ((1, 5, 30, 50, 60), {"kernel_size": 2}),
    ((1, 5, 30, 50, 60), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((1, 17, 13, 40, 44), {"kernel_size": 2, "stride": 2, "dilation": 2, "padding": 1, "ceil_mode": True}),
    ((1, 3, 24, 60, 60), {"kernel_size": (4, 3, 3), "stride": (2, 1, 1), "padding": 1}),  # scattered
    ((40, 600, 3, 3), {"kernel_size": 2, "stride": 1}),
]


@isas
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape, window", LARGE, ids=str)
def test_the_bits_of_the_chain_on_large_images(shape, window, layout, isa):
    if layout == "channels_last" and len(shape) not in FORMATS:
        return
    x = arranged(torch.randn(shape), layout)
    with convnorm.backends.using_isa(isa):
        assert_same_bits(x, **window)
        assert_same_bits(x, training=False, **window)


def test_windows_that_miss_the_image():
    assert_same_bits(torch.randn(2, 9, 2, 5), kernel_size=2, stride=1, padding=1, dilation=2, ceil_mode=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_maximum_that_relu_cut_gets_no_gradient(layout):
    x = arranged(torch.randn(2, 8, 12, 12), layout).requires_grad_()
    bias = torch.full((8,), -20.0)
    CF.batch_norm_act_max_pool(x, None, None, None, bias, True, kernel_size=3).sum().backward()
    assert not x.grad.any()


def test_kernels_that_are_pinned_by_name():
    """Pooling goes by its own list, part by part; all its kernels give the same bits."""
    x = torch.randn(2, 9, 20, 21)
    want = results(fused, x, True, **STEM)
    with convnorm.backends.force(max_pool_forward="max_pool_direct", max_pool_backward="max_pool_backward_direct"):
        found = results(fused, x, True, **STEM)
    for what, value in want.items():
        assert_same(found[what], value, what)
    with (
        convnorm.backends.force(batch_norm_max_pool_train="batch_norm_max_pool_rows_generic"),
        pytest.raises(RuntimeError, match="no kernel accepts this problem"),
    ):
        results(fused, x, True, **STEM)


# --- what is kept -------------------------------------------------------------------------------------------


def kept_bytes(function, x):
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        out = function(x)
    return sum(t.numel() * t.element_size() for t in kept.values() if t.numel() > 2 * x.shape[1]), out


def test_the_input_and_a_byte_for_each_output_are_kept():
    x = torch.randn(4, 5, 12, 14, requires_grad=True)
    layers = NN.BatchNormActMaxPool2d(5, 3, 2, 1), torch.nn.Sequential(NN.BatchNormAct2d(5), NN.MaxPool2d(3, 2, 1))
    (ours, out), (apart, _) = (kept_bytes(layer, x) for layer in layers)
    assert ours == 4 * x.numel() + out.numel() == apart
    theirs = torch.nn.Sequential(torch.nn.BatchNorm2d(5), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1))
    assert kept_bytes(theirs, x)[0] == 2 * 4 * x.numel() + 8 * out.numel()


# --- modules ------------------------------------------------------------------------------------------------

MODULES = [
    (NN.BatchNormActMaxPool1d, NN.BatchNormAct1d, NN.MaxPool1d, (6, 5, 17)),
    (NN.BatchNormActMaxPool2d, NN.BatchNormAct2d, NN.MaxPool2d, (4, 5, 10, 9)),
    (NN.BatchNormActMaxPool3d, NN.BatchNormAct3d, NN.MaxPool3d, (3, 5, 6, 7, 8)),
]


def pair(kind, norm, pool, options=(), window=()):
    ours = kind(5, 3, **dict(window), **dict(options))
    apart = torch.nn.Sequential(norm(5, **dict(options)), pool(3, **dict(window)))
    apart[0].load_state_dict(ours.state_dict())
    return ours, apart


@pytest.mark.parametrize("kind, norm, pool, shape", MODULES)
@pytest.mark.parametrize(
    "options, window",
    [
        ({}, {}),
        ({"momentum": None}, {"stride": 2, "padding": 1}),
        ({"track_running_stats": False, "act": None}, {"dilation": 2}),
        ({"affine": False, "eps": 0.1}, {"stride": 2, "ceil_mode": True}),
    ],
    ids=str,
)
def test_modules_are_the_two_layers(kind, norm, pool, shape, options, window):
    ours, apart = pair(kind, norm, pool, options, window)
    for _ in range(2):
        x = torch.randn(shape)
        assert_same(ours(x), apart(x))
    for a, b in zip(ours.buffers(), apart.buffers(), strict=True):
        assert torch.equal(a, b)
    ours.eval(), apart.eval()
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_same(twin(x), apart(x))


def test_state_dict_and_repr():
    layer = NN.BatchNormActMaxPool2d(5, 3, stride=2, padding=1)
    assert layer.state_dict().keys() == torch.nn.BatchNorm2d(5).state_dict().keys()
    assert isinstance(layer, torch.nn.BatchNorm2d)
    window = "kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False"
    assert layer.extra_repr() == f"{torch.nn.BatchNorm2d(5).extra_repr()}, act='relu', {window}"
    with pytest.raises(ValueError, match="'gelu' must be 'relu' or None"):
        NN.BatchNormActMaxPool1d(5, 2, act="gelu")


def test_compiled_training_and_fx():
    eager, x = NN.BatchNormActMaxPool2d(5, 3, 2, 1), torch.randn(4, 5, 11, 9)
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(copy.deepcopy(eager)))
    assert any(getattr(n.target, "__name__", "") == "_normalise_and_pool" for n in traced.graph.nodes)
    twin = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (4, 3):
        leaves = [x[:n].clone().requires_grad_() for _ in range(3)]
        for call, leaf in zip((eager, compiled, traced), leaves, strict=True):
            call(leaf).square().sum().backward()
        assert torch.equal(leaves[0].grad, leaves[1].grad) and torch.equal(leaves[0].grad, leaves[2].grad)
    assert torch.equal(eager.running_var, twin.running_var) and twin.num_batches_tracked == 2


def test_second_derivatives_are_the_chains():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def penalty(function):
        leaves = [t.clone().requires_grad_() for t in (x, x.new_ones(3), x.new_zeros(3))]
        out = function(leaves[0], None, None, *leaves[1:], True, **STEM)
        grads = torch.autograd.grad(out.pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    for a, b in zip(penalty(fused), penalty(chain), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind, norm, pool, shape", MODULES)
def test_autocast_and_meta(kind, norm, pool, shape):
    ours, apart = pair(kind, norm, pool)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(shape).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(ours(x), apart(x))
    assert copy.deepcopy(ours).to("meta")(torch.empty(shape, device="meta")).shape == ours(torch.randn(shape)).shape


def test_several_processes_folding_and_explain():
    net = torch.nn.Sequential(NN.Conv2d(3, 5, 3), NN.BatchNormActMaxPool2d(5, 2))
    x = torch.randn(2, 3, 9, 9)
    want = net(x)
    net[1].reset_running_stats()
    synced = NN.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert_same(synced(x), want)
    assert synced.state_dict().keys() == net.state_dict().keys()
    assert "batch_norm_max_pool_planes" in str(convnorm.explain(net[1], torch.randn(2, 5, 8, 8), backward=True))
    want = net.eval()(x)
    assert len(convnorm.fold(net, x).folded) == 1
    assert type(net[0]) is NN.ConvAct2d and type(net[1]) is NN.MaxPool2d
    torch.testing.assert_close(net(x), want)


def test_folding_into_a_layer_without_activation():
    for n, kind in ((1, NN.BatchNormActMaxPool1d), (2, NN.BatchNormActMaxPool2d)):
        net = torch.nn.Sequential(getattr(torch.nn, f"Conv{n}d")(3, 5, 3), kind(5, 2)).eval()
        x = torch.randn(2, 3, *[9] * n)
        want = net(x)
        convnorm.fold(net, x)
        torch.testing.assert_close(net(x), want)


# --- errors -------------------------------------------------------------------------------------------------

X, MEAN, VAR = torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3)


@pytest.mark.parametrize(
    "input, arguments, error, words",
    [
        (X, {"kernel_size": 5}, RuntimeError, r"batch_norm_act_max_pool2d: output height \(0\) = .* must be >= 1"),
        (X, {"kernel_size": 0}, RuntimeError, "2d: kernel_size 0 .* must be greater than zero"),
        (X, {"kernel_size": (2, 2, 2)}, RuntimeError, r"kernel_size \(2, 2, 2\) must be an int or 2 ints"),
        (X, {"kernel_size": 2, "padding": 2}, RuntimeError, "padding 2 .* must be at most half of kernel_size 2"),
        (X, {"kernel_size": 2, "act": "tanh"}, ValueError, "act 'tanh' must be 'relu' or None"),
        (X, {"kernel_size": 2, "eps": 0.0}, ValueError, "eps must be positive during training, but got 0"),
        (X, {"kernel_size": 2, "weight": torch.ones(2)}, RuntimeError, "weight should contain 3 elements not 2"),
        (X.double(), {"kernel_size": 2, "bias": VAR}, RuntimeError, "mixed dtype: bias has dtype float32"),
        (X.long(), {"kernel_size": 2}, NotImplementedError, "int64"),
        (X[0, 0], {"kernel_size": 2}, RuntimeError, r"size \[4, 4\], must be \(n, c\) and 1 to 3 spatial dimensions"),
        (X[:1, :, :1, :1], {"kernel_size": 1}, ValueError, "Expected more than 1 value per channel when training"),
        (X[:, :, :0], {"kernel_size": 1}, RuntimeError, "has dimension 2 of size zero"),
    ],
)
def test_errors_and_untouched_statistics(input, arguments, error, words):
    mean, var = MEAN.clone(), VAR.clone()
    with pytest.raises(error, match=words):
        CF.batch_norm_act_max_pool(input, mean, var, training=True, **arguments)
    assert torch.equal(mean, MEAN) and torch.equal(var, VAR)


def test_errors_of_evaluation_and_of_the_backward():
    with pytest.raises(RuntimeError, match="running_mean must be defined in evaluation mode"):
        CF.batch_norm_act_max_pool(X, None, None, kernel_size=2)
    with pytest.raises(ValueError, match="expected 4D input"):
        NN.BatchNormActMaxPool2d(3, 2)(X[0])
    window, op = [2, 2, 2, 2, 0, 0, 1, 1], torch.ops.convnorm.batch_norm_max_pool_backward
    out, argmax, stats = torch.ops.convnorm.batch_norm_max_pool_train(X, None, None, 1e-5, True, window, False, 1)
    flags = 1e-5, True, True, window, True, True
    for grad, codes, words in (
        (out[:1], argmax, "must have argmax's size"),
        (out.double(), argmax, "grad_output has dtype float64, must be input's float32"),
        (out, argmax.long(), "argmax has dtype int64, must be uint8 or int32"),
        (out, argmax[:, :2], "does not belong to an input of size"),
    ):
        with pytest.raises(RuntimeError, match=f"batch_norm_act_max_pool2d_backward: .*{words}"):
            op(grad, codes, X, None, None, stats, *flags)


def test_empty_batch():
    mean, var, w = MEAN.clone(), VAR.clone(), torch.ones(3, requires_grad=True)
    y = CF.batch_norm_act_max_pool(X[:0], mean, var, w, training=True, kernel_size=2)
    (grad,) = torch.autograd.grad(y.sum(), w)
    assert y.shape == (0, 3, 2, 2) and not grad.any()
    assert torch.equal(mean, MEAN) and torch.equal(var, VAR)
