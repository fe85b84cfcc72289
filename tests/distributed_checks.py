"""What the processes of tests/test_distributed.py run: everything is compared with one process on the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import convnorm
import convnorm.functional as CF
from convnorm.distributed import sync_batch_norm
from convnorm.testing import assert_accurate, assert_same, max_error
from tests.specs import DTYPES, cast, evaluate
from tests.specs.batch_norm import CASES, SPEC, with_running

NN = convnorm.nn
_pairs = []


def pair():
    """The group of two that this process is in: (0, 1) or (2, 3)."""
    if not _pairs:
        _pairs.extend(dist.new_group([r, r + 1]) for r in range(0, dist.get_world_size(), 2))
    return _pairs[dist.get_rank() // 2]


def group_of(size):
    return None if size == dist.get_world_size() else pair()


def parts(n, size, turn=0):
    """Uneven parts of n; with four processes one or more are empty, with two every third time."""
    if size == 2:
        sizes = [n, 0] if turn % 3 == 2 else [n - n // 3, n // 3]
    else:
        sizes = [n - n // 2 - n // 4, n // 4, 0, n // 2]
    turn %= size
    return sizes[turn:] + sizes[:turn]


class Share:
    """This process's part of a batch of n."""

    def __init__(self, n, group=None, turn=0):
        self.group, self.rank = group, dist.get_rank(group)
        self.sizes = parts(n, dist.get_world_size(group), turn)

    def of(self, t):
        return None if t is None else t.split(self.sizes)[self.rank]

    def placed(self, t):
        """The whole batch, zero but for this process's part; sums over the processes are then those of the whole."""
        return torch.cat([t if r == self.rank else t.new_zeros(n, *t.shape[1:]) for r, n in enumerate(self.sizes)])

    def total(self, t):
        t = t.detach().double().contiguous()
        dist.all_reduce(t, group=self.group)
        return t


def assert_same_everywhere(t, group):
    all_of_them = [torch.empty_like(t) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_of_them, t.contiguous(), group=group)
    for other in all_of_them:
        assert_same(other, t, "in another process")


# --- the function -------------------------------------------------------------------------------------------


def as_one(group, turn):
    """batch_norm on the whole batch as SPEC has it, of which each process computes its part."""

    def function(input, running_mean=None, running_var=None, weight=None, bias=None, residual=None, act=None, **kwargs):
        share = Share(len(input), group, turn)

        def run(mean, var):
            mine = share.of(input)
            kwargs.update(act=act, residual=share.of(residual), process_group=group)
            out = sync_batch_norm(mine, mean, var, weight, bias, **kwargs)
            assert out.stride() == torch.empty_like(mine).stride()
            return share.placed(out)

        return with_running(run, running_mean, running_var, kwargs["training"])

    return function


def check_case(case, turn, dtype, layout, group):
    inputs = SPEC.inputs(case, dtype, layout)
    ours = evaluate(as_one(group, turn), inputs, SPEC.grads)
    share = Share(len(inputs["input"]), group, turn)
    for what, value in ours.items():
        if what in ("output 1", "output 2"):  # running statistics
            assert_same_everywhere(value, group)
        else:
            ours[what] = share.total(value).to(dtype)
    if share.rank:  # every process has the same numbers now: one compares
        return
    peer = cast(inputs, torch.float32) if dtype == torch.float64 else inputs
    theirs = evaluate(SPEC.theirs, peer, SPEC.grads)
    reference = evaluate(SPEC.theirs, cast(inputs, torch.float64), SPEC.grads)
    assert ours.keys() == reference.keys()
    for what, value in ours.items():
        assert_accurate(value, theirs[what], reference[what], f"{case.reason}, {layout}, {what}")


def check_cases(size, dtype):
    for turn, case in enumerate(CASES):
        if case.small or (dtype, size) == ("float32", 4):
            for layout in case.layouts():
                check_case(case, turn, DTYPES[dtype], layout, group_of(size))


def check_on_devices(layout):
    """A layer on each process's device, whatever the backend: what batch norm on the whole batch gives there."""
    device = torch.device("cuda", dist.get_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")
    fmt = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    whole = [(torch.randn(7, 8, 5, 6) + mean).to(device, memory_format=fmt) for mean in (3, 0)]  # input, gradient
    share = Share(7)

    def run(layer, x, grad):
        layer, x = layer.to(x), x.detach().requires_grad_()
        out = layer(x)
        return layer, [out.detach(), *torch.autograd.grad(out, [x, layer.weight, layer.bias], grad)]

    theirs = run(nn.BatchNorm2d(8), *whole)[1]
    reference = run(nn.BatchNorm2d(8), *(t.double() for t in whole))[1]
    layer, ours = run(NN.SyncBatchNorm(8), *(share.of(t).contiguous(memory_format=fmt) for t in whole))
    for sum_of_all in ours[2:]:
        dist.all_reduce(sum_of_all)
    for i, tensors in enumerate(zip(ours, theirs, reference, strict=True)):
        assert_accurate(tensors[0], *(tensors[1:] if i > 1 else map(share.of, tensors[1:])), f"result {i}")
    assert_same_everywhere(layer.running_mean, None)
    assert_same_everywhere(layer.running_var, None)


def check_far_means(size):
    """Means far from zero and from each other cost no digits: the merge is exact enough for any of them."""
    group = group_of(size)
    offsets = torch.tensor([1e6, -1e6, 1e3, 0.0]).repeat_interleave(3).view(-1, 1, 1, 1)
    for input in (torch.randn(12, 3, 8, 8) + 1e6, torch.randn(12, 3, 8, 8) + offsets):
        share = Share(len(input), group)
        layer = NN.SyncBatchNorm(3, process_group=group)
        whole = share.total(share.placed(layer(share.of(input))))
        reference = nn.BatchNorm2d(3).double()(input.double())
        assert max_error(whole, reference) <= 1e-5
        assert_accurate(layer.running_var, layer.running_var, 0.9 + 0.1 * input.double().var((0, 2, 3)))


def check_higher_derivatives(act, with_residual):
    """Second and third derivatives, with the collectives inside."""
    x, r, g = (torch.randn(6, 2, 3, dtype=torch.float64) for _ in range(3))
    w, b = torch.rand(2, dtype=torch.float64) + 0.5, torch.randn(2, dtype=torch.float64)
    directions = [torch.randn_like(t) for t in (x, w, g)]

    def derivatives(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (x, w, g)]
        input, weight, grad = leaves
        residual = r.to(dtype) if with_residual else None
        level, found = (function(input, weight, b.to(dtype), residual) * grad).sum(), []
        for _ in range(3):
            grads = torch.autograd.grad(level, leaves, create_graph=True)
            found.append(torch.cat([t.detach().flatten() for t in grads]))
            level = sum((a * d.to(dtype)).sum() for a, d in zip(grads, directions, strict=True))
        return found

    def together(input, weight, bias, residual):
        # A leaf is the same variable in every process, so each process gives its part of the derivative.
        return share.placed(
            sync_batch_norm(share.of(input), None, None, weight, bias, act=act, residual=share.of(residual))
        )

    def alone(input, weight, bias, residual):
        return CF.batch_norm_act(input, None, None, weight, bias, True, act=act, residual=residual)

    share = Share(len(x))
    ours = [share.total(t) for t in derivatives(together, torch.float64)]
    theirs, reference = derivatives(alone, torch.float32), derivatives(alone, torch.float64)
    for i, triple in enumerate(zip(ours, theirs, reference, strict=True)):
        assert_accurate(*triple, f"derivatives of order {i + 1}")


def check_errors_and_groups(size):
    """Wrong calls fail in every process alike, before anyone waits; groups keep to themselves."""
    group, rank = group_of(size), dist.get_rank()
    first = dist.get_rank(group) == 0
    running = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got 1 over all"):
        sync_batch_norm(torch.randn(int(first), 3), *running, process_group=group)
    with pytest.raises(ValueError, match="eps must be positive during training, but got 0"):
        sync_batch_norm(torch.randn(2, 3), *running, eps=0.0, process_group=group)
    with pytest.raises(RuntimeError, match="running_var should contain 3 elements not 4"):
        sync_batch_norm(torch.randn(2, 3), running[0], torch.ones(4), process_group=group)
    with pytest.raises(ValueError, match="must either both be None or neither be None"):
        sync_batch_norm(torch.randn(2, 3), running[0], None, process_group=group)
    with pytest.raises(NotImplementedError, match="int64"):
        sync_batch_norm(torch.ones(2, 3, dtype=torch.int64), *running, process_group=group)
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(lambda x: sync_batch_norm(x, None, None, process_group=group), *[(torch.randn(2, 3),)] * 2)
    assert not running[0].any() and (running[1] == 1).all()

    whole = torch.arange(12.0).view(4, 3).sin() + rank // size  # another batch in each pair
    here = Share(4, group)
    out = here.total(here.placed(sync_batch_norm(here.of(whole), *running, process_group=group)))
    mean, var = torch.zeros(3), torch.ones(3)
    alone, reference = CF.batch_norm(whole, mean, var, training=True), nn.BatchNorm1d(3).double()(whole.double())
    assert_accurate(out.float(), alone, reference)
    assert_accurate(running[0], mean, 0.1 * whole.double().mean(0))

    outsider = dist.new_group([0])
    x = torch.randn(5, 3)
    assert_same(sync_batch_norm(x, None, None, process_group=outsider), CF.batch_norm(x, None, None, training=True))


# --- the module ---------------------------------------------------------------------------------------------


def network(dtype=torch.float64):
    """No biases before a norm: their gradient is zero, and what is found of it is rounding errors alone."""
    torch.manual_seed(1)
    return nn.Sequential(
        NN.Conv2d(2, 4, 3, bias=False), NN.BatchNormAct2d(4), NN.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3),
        nn.Flatten(), nn.Linear(48, 5, bias=False), nn.BatchNorm1d(5),
    ).to(dtype)  # fmt: skip


BATCHES = (8, 3, 5)
RATE, MOMENTUM = 0.1, 0.9


def trained(net, dtype, share_of=None, processes=1):
    """Parameters and buffers after a step on each of BATCHES."""
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.SGD(net.parameters(), RATE, MOMENTUM)
    for turn, n in enumerate(BATCHES):
        x = torch.randn(n, 2, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
        x = x if share_of is None else share_of(n, turn).of(x)
        optimizer.zero_grad()
        # DDP and FSDP average the gradients: the loss is the mean over the whole batch, times the processes.
        (net(x).sin().sum() * (processes / n)).backward()
        optimizer.step()


def compare_training(wrap):
    """Steps of a wrapped network in all processes against one process on the whole batches."""
    alone = {}
    for dtype in (torch.float32, torch.float64):
        net = network(dtype)
        trained(net, dtype)
        alone[dtype] = net.state_dict()
    net = NN.SyncBatchNorm.convert_sync_batchnorm(network())
    assert sum(type(m) is NN.SyncBatchNorm for m in net) == 3
    wrapped = wrap(net)
    trained(wrapped, torch.float64, lambda n, turn: Share(n, None, turn), dist.get_world_size())
    found = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in net.state_dict().items()}
    assert found.keys() == alone[torch.float64].keys()
    for value in found.values():
        assert_same_everywhere(value, None)
    # All at once: the rounding errors of four values, after three steps, are luck.
    ours, theirs, reference = (
        torch.cat([state[name].flatten().to(state["0.weight"].dtype) for name in found])
        for state in (found, alone[torch.float32], alone[torch.float64])
    )
    assert_accurate(ours, theirs, reference, "the state after training")


def check_ddp():
    compare_training(DistributedDataParallel)


def check_fsdp2():
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))

    def wrap(net):
        for layer in net:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        return fully_shard(net, mesh=mesh)

    compare_training(wrap)


def check_compile():
    """One graph, forward and backward, with the collectives in it; the same bits as eager. In two processes: it takes
    each of them seconds."""
    group = pair()
    if dist.get_rank() > 1:
        return
    layer, twin = (NN.SyncBatchNorm(3, act="relu", process_group=group) for _ in range(2))
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, turn in ((9, 0), (11, 0), (5, 2)):  # the last time one of them has nothing
        share = Share(n, group, turn)
        x, r = share.of(torch.randn(n, 3, 4, 4)), share.of(torch.randn(n, 3, 4, 4))
        a, b = (x.clone().requires_grad_() for _ in range(2))
        eager, out = layer(a, r), compiled(b, r)
        assert_same(out, eager)
        eager.square().sum().backward()
        out.square().sum().backward()
        assert_same(b.grad, a.grad)
    for (name, ours), theirs in zip(twin.state_dict().items(), layer.state_dict().values(), strict=True):
        assert_same(ours, theirs, name)
    assert_same(twin.weight.grad, layer.weight.grad)


def check_evaluation_waits_for_nobody():
    """Only one process calls: it would hang if the others were asked."""
    x = torch.randn(4, 3, 5)
    if dist.get_rank() == 1:
        for tracks in (True, False):
            layer = NN.SyncBatchNorm(3, track_running_stats=tracks).eval()
            assert_same(layer(x), NN.BatchNorm1d(3, track_running_stats=tracks).eval()(x))
