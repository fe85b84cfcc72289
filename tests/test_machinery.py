"""One small network of all layers through PyTorch's machinery. What holds for each op alone is in test_contract."""

import contextlib
import copy
import io
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import convnorm
import convnorm.functional as CF
from convnorm.testing import assert_accurate, assert_same


class Network(torch.nn.Module):
    """Every kind of layer; ``nn`` is torch.nn or convnorm.nn. Height and width of the input are even."""

    def __init__(self, nn=convnorm.nn):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.batch = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.instance = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.mean = nn.AvgPool2d(3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.layer = nn.LayerNorm(4)
        self.highest = nn.AdaptiveMaxPool2d((4, None))
        self.average = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        size = x.shape[2:]
        x = self.group(torch.relu(self.batch(self.conv(x))))
        x, indices = self.pool(x)
        x = self.unpool(self.instance(x), indices, output_size=size)
        x = self.up(self.mean(x), output_size=size)
        x = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.linear(self.average(self.highest(x)).flatten(1))


@pytest.fixture
def x():
    return torch.randn(2, 3, 16, 12)


def twins():
    """The network of torch's layers and of convnorm's, with the same parameters."""
    theirs = Network(torch.nn)
    return theirs, convnorm.convert(copy.deepcopy(theirs))


def train(net, x):
    """Output, gradients and buffers of one training step's forward and backward, by name."""
    net.train()
    net.zero_grad()
    out = net(x)
    (out * torch.arange(out.numel()).view_as(out)).sum().backward()
    found = {"output": out.detach()} | {k: p.grad.clone() for k, p in net.named_parameters()}
    return found | {k: b.clone() for k, b in net.named_buffers()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for what, value in expected.items():
        assert_same(found[what], value, what)


def test_the_network_is_torchs(x):
    theirs, ours = twins()
    assert convnorm.conversion_report(ours).count("convnorm") == 11
    exact, theirs, ours = train(copy.deepcopy(theirs).double(), x.double()), train(theirs, x), train(ours, x)
    for what, value in exact.items():
        if value.abs().max() > 1e-12:  # a bias in front of a norm has no gradient: what is there is rounding
            assert_accurate(ours[what], theirs[what], value, what)


# --- compilation --------------------------------------------------------------------------------------------


def test_compiles_whole_in_training(x):
    net = Network()
    expected = train(copy.deepcopy(net), x)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_equal({k.removeprefix("_orig_mod."): v for k, v in train(compiled, x).items()}, expected)


def test_one_graph_serves_all_marked_sizes():
    net, counter = Network().eval(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for size in ((2, 16, 12), (3, 18, 14), (5, 10, 20)):
        x = torch.randn(size[0], 3, *size[1:])
        for dim in (0, 2, 3):
            torch._dynamo.mark_dynamic(x, dim)
        with torch.no_grad():
            assert_same(compiled(x), net(x))
    assert counter.frame_count == 1


def test_the_default_backend_compiles(x):
    net = torch.nn.Sequential(convnorm.nn.Conv2d(3, 4, 3), convnorm.nn.GroupNorm(2, 4), convnorm.nn.MaxPool2d(2))
    assert_equal(
        {k.removeprefix("_orig_mod."): v for k, v in train(torch.compile(net, fullgraph=True), x).items()},
        train(net, x),
    )


def test_compiles_under_autocast(x):
    net = torch.nn.Sequential(convnorm.nn.Conv2d(3, 4, 3), convnorm.nn.GroupNorm(2, 4), convnorm.nn.MaxPool2d(2))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16
        assert_same(compiled(x), net(x))


def test_exports_with_dynamic_sizes_and_comes_back(x):
    net, half = Network().eval(), {d: torch.export.Dim(d, min=3, max=64) for d in "hw"}
    sizes = {0: torch.export.Dim("n", min=1, max=64), 2: 2 * half["h"], 3: 2 * half["w"]}
    program = torch.export.export(net, (x,), dynamic_shapes=(sizes,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for given in (x, torch.randn(5, 3, 10, 20)):
        assert_same(loaded(given), net(given))


def test_both_modes_of_export_record_the_plain_ops(x):
    def ops(strict):
        graph = torch.export.export(Network(), (x,), strict=strict).graph
        return [n.target for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload)]

    ours = [op for op in ops(False) if op.namespace == "convnorm"]
    assert len(ours) == 12 and [op for op in ops(True) if op.namespace == "convnorm"] == ours


# --- derivatives --------------------------------------------------------------------------------------------


def test_gradients_per_sample(x):
    net = Network().eval()
    parameters, buffers = {k: p.detach() for k, p in net.named_parameters()}, dict(net.named_buffers())

    def loss(parameters, image):
        return functional_call(net, (parameters, buffers), (image[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, image in enumerate(x):
        for name, expected in grad(loss)(parameters, image).items():
            torch.testing.assert_close(each[name][i], expected)


def test_forward_mode_of_the_network():
    x = torch.randn(16, 3, 16, 12)  # ten outputs an image: of few, torch's error may be small by luck
    theirs, ours = twins()
    tangent = torch.randn_like(x)

    def derivative(net, dtype):
        return jvp(net.eval().to(dtype), (x.to(dtype),), (tangent.to(dtype),))[1]

    found = [derivative(net, torch.float32) for net in (ours, theirs)]
    assert_accurate(*found, derivative(theirs, torch.float64))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_no_gradient(x, training, use_reentrant):
    def gradients(run):
        net, leaf = copy.deepcopy(network).train(training), x.clone().requires_grad_()
        run(net, leaf).square().sum().backward()
        return {"input": leaf.grad} | {k: p.grad for k, p in net.named_parameters()}

    network = Network()
    plain = gradients(lambda net, leaf: net(leaf))
    assert_equal(gradients(lambda net, leaf: checkpoint(net, leaf, use_reentrant=use_reentrant)), plain)


# --- autocast -----------------------------------------------------------------------------------------------


def calls():
    """(functional's name, tensors and numbers, keyword arguments) for every functional that torch has as well.

    The dtype of ``conv2d_act`` is that of torch's ``conv2d``."""
    affine, running = [torch.rand(4), torch.rand(4)], [torch.rand(4), torch.rand(4)]
    for n in (1, 2, 3):
        x, weight = torch.rand(2, 4, *[6] * n), torch.rand(4, 4, *[3] * n)
        for op in (f"conv{n}d", f"conv{n}d_act", f"conv_transpose{n}d"):
            yield op, (x, weight, affine[0]), {}
        for op in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"):
            yield f"{op}{n}d", (x, 2), {}
        for op in ("max_pool", "adaptive_max_pool"):
            yield f"{op}{n}d_with_indices", (x, 2), {}
        yield f"max_unpool{n}d", (x, torch.arange(6**n).view([6] * n).expand_as(x).contiguous(), 2), {}
    for training in (True, False):
        yield "batch_norm", (x, *running, *affine), {"training": training}
        yield "instance_norm", (x, *running, *affine), {"use_input_stats": training}
    yield "layer_norm", (x, (6,), torch.rand(6), torch.rand(6)), {}
    yield "group_norm", (x, 2, *affine), {}


@contextlib.contextmanager
def autocast_of_cuda(dtype):
    """torch.autocast("cuda") turns itself off where there is no CUDA."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def dtypes_under(device, dtype, function, arguments, keywords):
    """Dtypes of the outputs, or None where the call is refused; on CUDA of fake tensors."""
    fake = FakeTensorMode() if device == "cuda" else contextlib.nullcontext()
    autocast = autocast_of_cuda(dtype) if device == "cuda" else torch.autocast(device, dtype)
    with fake:
        arguments = [
            torch.zeros(a.shape, dtype=a.dtype, device=device) if isinstance(a, torch.Tensor) else a for a in arguments
        ]
        try:
            with autocast:
                out = function(*arguments, **keywords)
        except (RuntimeError, NotImplementedError):
            return None
    return [t.dtype for t in ((out,) if isinstance(out, torch.Tensor) else out)]


@pytest.mark.parametrize("device, to", [("cpu", torch.bfloat16), ("cpu", torch.float16), ("cuda", torch.float16)])
def test_autocast_gives_torchs_dtypes(device, to):
    """Every functional, with inputs and parameters of any two dtypes."""
    names = set()
    for name, arguments, keywords in calls():
        names.add(name)
        for first, rest in itertools.product((torch.float32, torch.float64, torch.bfloat16, torch.float16), repeat=2):
            kinds = iter([first])
            mixed = [
                a.to(next(kinds, rest)) if isinstance(a, torch.Tensor) and a.is_floating_point() else a
                for a in arguments
            ]
            functions = getattr(CF, name), getattr(F, name.removesuffix("_act"))
            ours, theirs = (dtypes_under(device, to, function, mixed, keywords) for function in functions)
            # What a batch norm's parameters may be is checked in C++, which fakes do not reach.
            unchecked = device == "cuda" and name == "batch_norm" and theirs is None
            assert ours == theirs or unchecked, f"{name} of {first}, {rest}: {ours}, torch {theirs}"
    assert names == set(CF.__all__) - {"batch_norm_act", "batch_norm_act_max_pool"}


# --- graphs and counters ------------------------------------------------------------------------------------


def test_fx_keeps_functionals_and_norm_modules_whole(x):
    net = Network()
    traced = fx.symbolic_trace(net)
    assert not net.batch.num_batches_tracked, "tracing must not count a batch"
    names = {n.target.__name__ for n in traced.graph.nodes if n.op == "call_function"}
    assert names >= {
        "conv2d",
        "_batch_norm",
        "group_norm",
        "max_pool2d",
        "_instance_norm",
        "max_unpool2d",
        "avg_pool2d",
        "_conv_transpose",
        "layer_norm",
        "adaptive_max_pool2d",
        "adaptive_avg_pool2d",
    }
    expected = train(copy.deepcopy(net), x)
    for twin in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced)), traced):
        assert_equal(train(twin, x), expected)
    assert_same(traced.eval()(x), net.eval()(x))  # the mode is not burnt in, and the modules are shared


def test_flop_counter_counts_what_it_counts_for_torch(x):
    counts = []
    for net in twins():
        with FlopCounterMode(display=False) as counter:
            net(x.clone().requires_grad_()).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_profiler_shows_ops_and_their_backwards(x):
    net = Network()
    with torch.profiler.profile() as profile:
        train(net, x)
    names = {event.key for event in profile.key_averages()}
    ops = "conv conv_transpose batch_norm group_norm max_pool max_unpool avg_pool layer_norm adaptive_max_pool"
    assert names >= {"convnorm::conv_forward", "convnorm::conv_by_weight", "Conv", "ConvBackward"}
    assert names >= {f"convnorm::{op}_backward" for op in ops.split() if "conv" not in op}
    assert type(net.conv(x).grad_fn).__name__ == "ConvBackward"


# --- without data, and copies -------------------------------------------------------------------------------


def test_runs_without_data(x):
    with torch.device("meta"):
        assert train(Network(), x.to("meta"))["output"].shape == (2, 5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = train(Network(), torch.empty(2, 3, 16, 12))
    for what, value in train(Network(), x).items():
        assert (found[what].shape, found[what].stride()) == (value.shape, value.stride()), what


def test_copies_compute_the_same(x):
    net = Network()
    train(net, x)
    expected = net.eval()(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_same(twin(x), expected)


def test_fake_convolution_refuses_mixed_dtypes(x):
    with FakeTensorMode(), pytest.raises(RuntimeError, match=r"the same dtype, got torch\.float32, torch\.float64"):
        CF.conv2d(torch.empty(1, 3, 8, 8), torch.empty(4, 3, 3, 3, dtype=torch.float64))


def test_jit_trace_of_inference_saves_and_loads(x):
    nn = convnorm.nn
    net = torch.nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.MaxPool2d(2)
    ).eval()
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(net, x), buffer)
        buffer.seek(0)
        other = torch.randn(3, 3, 10, 8)
        assert_same(torch.jit.load(buffer)(other), net(other))
