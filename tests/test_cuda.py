"""On a GPU: every op with kernels for CUDA as accurate as torch's, and what only a device has: streams, graphs, others
like it, and more elements than 31 bits count. Without a GPU all of it is skipped."""

import pytest
import torch

import convnorm
import convnorm.functional as CF
from convnorm.testing import assert_accurate, assert_same
from tests import distributed_checks as checks
from tests.processes import Group
from tests.specs import DTYPES, cast, evaluate

CUDA = torch.cuda.is_available() and bool(convnorm._C.build_info()["cuda"])
SERVED = (
    "adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "batch_norm", "conv", "conv_transpose", "group_norm",
    "layer_norm", "max_pool", "max_unpool",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not CUDA, reason="no GPU, or convnorm was built without CUDA")


def moved(inputs, device):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def home(results):
    return {k: v.cpu() for k, v in results.items()}


@pytest.mark.cases(names=SERVED)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_as_accurate_as_torch(spec, case, layout, dtype):
    if spec.exact and dtype == torch.float64:
        return
    inputs = spec.inputs(case, dtype, layout)
    peer = cast(inputs, torch.float32) if dtype == torch.float64 else inputs
    ours = home(evaluate(spec.ours, moved(inputs, "cuda"), spec.grads))
    theirs = home(evaluate(spec.theirs, moved(peer, "cuda"), spec.grads))
    reference = evaluate(spec.theirs, cast(inputs, torch.float64), spec.grads)
    for what in ours:
        assert_accurate(ours[what], theirs[what], reference[what], what)


@pytest.mark.cases(names=SERVED, exact=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_integers_give_the_values_of_the_cpu(spec, case, layout, dtype):
    inputs = spec.inputs(case, dtype, layout, kind="integers")
    ours = home(evaluate(spec.ours, moved(inputs, "cuda"), spec.grads, kind="integers"))
    cpu = evaluate(spec.ours, inputs, spec.grads, kind="integers")
    for what in ours:
        assert_same(ours[what], cpu[what], what)


@pytest.mark.cases(names=SERVED, small=True)
def test_same_bits_every_time_and_layouts_kept(spec, case, layout):
    inputs = moved(spec.inputs(case, torch.float32, layout), "cuda")
    first = evaluate(spec.ours, inputs, spec.grads)
    for _ in range(3):
        again = evaluate(spec.ours, inputs, spec.grads)
        assert all(torch.equal(first[what], again[what]) for what in first)
    cpu = evaluate(spec.ours, moved(inputs, "cpu"), spec.grads)
    assert all(first[what].stride() == cpu[what].stride() for what in first)


def chain(x, weight, bias, filters):
    """A block that has every op with kernels for CUDA."""
    y = CF.conv2d(x, filters, padding=1)
    y = CF.conv2d(y, filters[:, :1], padding=1, groups=16)
    y = CF.batch_norm_act(y, None, None, weight, bias, training=True, act="relu")
    return CF.adaptive_max_pool2d(CF.max_pool2d(y, 3, 2, 1), 4)


def block(device="cuda", n=4):
    generator = torch.Generator().manual_seed(0)
    shapes = (n, 16, 20, 20), (16,), (16,), (16, 16, 3, 3)
    return [torch.randn(s, generator=generator).to(device).requires_grad_() for s in shapes]


def trained(tensors):
    out = chain(*tensors)
    return [out, *torch.autograd.grad(out.square().sum(), tensors)]


def test_another_stream():
    tensors = block()
    expected, stream = trained(tensors), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what does not follow the stream runs too early
        with torch.no_grad():
            tensors[0].mul_(2)
        found = trained(tensors)
        with torch.no_grad():
            tensors[0].mul_(0.5)
    torch.cuda.current_stream().wait_stream(stream)
    assert not torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(trained(tensors), expected, strict=True))


def test_captured_in_a_graph():
    tensors = block()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        trained(tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = trained(tensors)
    with torch.no_grad():
        tensors[0].add_(1)
    graph.replay()
    expected = trained(tensors)
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_device_that_is_not_current():
    expected = trained(block("cuda:0"))
    found = trained(block("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(b.device.index == 1 and torch.equal(a.cpu(), b.cpu()) for a, b in zip(expected, found, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sync_batch_norm_over_nccl(tmp_path, layout):
    group = Group(2, tmp_path, "nccl")
    try:
        group.run(checks.check_on_devices, layout)
    finally:
        group.close()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_by_inductor(dynamic):
    tensors = block()
    out = chain(*tensors)
    grad = torch.randn_like(out)
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, dynamic=dynamic)(*tensors)
    assert torch.equal(compiled, out) and compiled.stride() == out.stride()
    found, expected = (torch.autograd.grad(y, tensors, grad) for y in (compiled, out))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_empty_batches():
    assert trained(block(n=0))[0].shape == (0, 16, 4, 4)


def test_devices_are_not_mixed():
    x, weight, bias, filters = block()
    with pytest.raises(RuntimeError, match="same device"):
        CF.conv2d(x, filters.cpu())
    with pytest.raises(RuntimeError, match="same device"):
        CF.batch_norm(x, None, None, weight.cpu(), bias, training=True)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("channels", [64, 33])
@pytest.mark.parametrize("shortcut", [False, True])
def test_batch_norm_of_one_kernel_has_the_bits_of_two_passes(dtype, channels, shortcut):
    """So it does not matter that its choice depends on the device's shared memory."""
    x, residual = (torch.randn(16, channels, 28, 28, device="cuda", dtype=dtype) + 3 for _ in range(2))
    x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    weight, bias = (torch.randn(channels, device="cuda", dtype=dtype) for _ in range(2))
    arguments, found = (x, weight, bias, residual if shortcut else None, 1e-5, True), []
    for kernel in ("batch_norm_resident_cuda", "batch_norm_rows_cuda"):
        with convnorm.backends.force(batch_norm_train=kernel):
            found.append(torch.ops.convnorm.batch_norm_train(*arguments))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_unpooling_shows_an_index_outside_the_plane():
    """An error would have to wait for the device: the plane is NaN, the others are as they should be."""
    x = torch.rand(2, 3, 2, 2, device="cuda")
    indices = torch.tensor([0, 5, 10, 15], device="cuda").view(1, 1, 2, 2).repeat(2, 3, 1, 1)
    want = CF.max_unpool2d(x, indices, 2, output_size=(4, 4))
    for bad in (-1, 16, 1 << 40):
        indices[1, 1, 0, 0] = bad
        found = CF.max_unpool2d(x, indices, 2, output_size=(4, 4))
        assert found[1, 1].isnan().all()
        found[1, 1] = want[1, 1]
        assert torch.equal(found, want)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_more_elements_than_31_bits_count(layout):
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("less than 60 GB of memory free")
    one = torch.randn(1, 64, 512, 512, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=layout)
    n = (1 << 31) // one.numel() + 3
    x = one.expand(n, -1, -1, -1).contiguous(memory_format=layout).requires_grad_()
    pooled = CF.max_pool2d(x, 2)
    assert torch.equal(pooled[-1], CF.max_pool2d(one, 2)[0])
    (grad,) = torch.autograd.grad(pooled, x, torch.ones_like(pooled))
    assert torch.equal(grad[-1], grad[0])
    del pooled, grad
    y, want = CF.batch_norm(x.detach(), None, None, training=True), CF.batch_norm(one, None, None, training=True)
    assert torch.equal(y[-1], y[0])
    torch.testing.assert_close(y[-1], want[0])
