"""SyncBatchNorm: in several processes what batch norm is in one, and in one process batch norm itself."""

import copy
import pickle

import pytest
import torch
from torch import nn

import convnorm
from convnorm.testing import assert_same
from tests import distributed_checks as checks
from tests.processes import Group

NN = convnorm.nn


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four processes; they are two groups of two for the checks of size 2."""
    group = Group(4, tmp_path_factory.mktemp("gloo"))
    yield group
    group.close()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("size", [2, 4])
def test_uneven_and_empty_batches_equal_one_process(four, size, dtype):
    four.run(checks.check_cases, size, dtype)


@pytest.mark.parametrize("size", [2, 4])
def test_means_far_from_zero_and_from_each_other(four, size):
    four.run(checks.check_far_means, size)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_on_the_device_of_each_process(four, layout):
    """tests/test_cuda.py runs it over NCCL."""
    four.run(checks.check_on_devices, layout)


@pytest.mark.parametrize("act, residual", [(None, False), ("relu", True)])
def test_derivatives_up_to_the_third(four, act, residual):
    four.run(checks.check_higher_derivatives, act, residual)


@pytest.mark.parametrize("size", [2, 4])
def test_errors_and_process_groups(four, size):
    four.run(checks.check_errors_and_groups, size)


def test_training_under_ddp(four):
    four.run(checks.check_ddp)


def test_training_under_fsdp2(four):
    four.run(checks.check_fsdp2)


def test_compiles_whole(four):
    four.run(checks.check_compile)


def test_evaluation_waits_for_nobody(four):
    four.run(checks.check_evaluation_waits_for_nobody)


# --- one process --------------------------------------------------------------------------------------------


def test_alone_it_is_batch_norm():
    ours, theirs, x = NN.SyncBatchNorm(3), NN.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    assert_same(ours(x), theirs(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys() == nn.SyncBatchNorm(3).state_dict().keys()
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert_same(a, b, name)
    assert_same(ours.eval()(x), theirs.eval()(x))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    assert_same(twin(x), ours(x))
    assert repr(ours) == repr(nn.SyncBatchNorm(3))
    assert "act='relu'" in repr(NN.SyncBatchNorm(3, act="relu"))
    nn.SyncBatchNorm(3).load_state_dict(ours.state_dict())
    with pytest.raises(ValueError, match="expected at least 2D input"):
        ours(torch.randn(3))
    with pytest.raises(ValueError, match="act 'gelu' must be 'relu' or None"):
        NN.SyncBatchNorm(3, act="gelu")


def test_conversion_keeps_everything():
    model = nn.Sequential(
        nn.BatchNorm1d(3, momentum=None), NN.BatchNorm2d(3, eps=0.1), NN.BatchNormAct3d(3), nn.SyncBatchNorm(3),
        nn.Sequential(nn.BatchNorm2d(4, affine=False)), nn.InstanceNorm2d(3),
    ).eval()  # fmt: skip
    before, modules = dict(model.state_dict(keep_vars=True)), list(model.modules())
    assert NN.SyncBatchNorm.convert_sync_batchnorm(model, "a group") is model
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True)) and not model[0].training
    assert all(value is before[name] for name, value in model.state_dict(keep_vars=True).items())
    layers = [*model[:4], model[4][0]]
    assert all(type(m) is NN.SyncBatchNorm and m.process_group == "a group" for m in layers)
    assert [m.act for m in layers] == [None, None, "relu", None, None]
    assert model[0].momentum is None and model[1].eps == 0.1 and type(model[5]) is nn.InstanceNorm2d
    alone = nn.BatchNorm2d(3)
    assert type(NN.SyncBatchNorm.convert_sync_batchnorm(alone)) is NN.SyncBatchNorm and alone.process_group is None


def test_conversion_refuses_what_it_would_lose():
    class Own(nn.BatchNorm2d):
        def forward(self, input):
            return super().forward(input).relu()

    for layer, reason in ((Own(3), "forward of its own"), (nn.LazyBatchNorm2d(), "lazy")):
        model = nn.Sequential(nn.BatchNorm2d(3), layer)
        with pytest.raises(TypeError, match=rf"convert_sync_batchnorm: 1 \({type(layer).__name__}\) .*{reason}"):
            NN.SyncBatchNorm.convert_sync_batchnorm(model)
        assert type(model[0]) is nn.BatchNorm2d


def test_the_parts_are_ops():
    x, g, w = torch.randn(4, 3, 5, 4), torch.randn(4, 3, 5, 4), torch.rand(3)
    ops = torch.ops.convnorm
    out, stats = ops.batch_norm_train(x, w, None, None, 1e-5, True)
    assert_same(ops.batch_norm_stats(x), stats)
    assert_same(ops.batch_norm_elemt(x, w, None, None, stats, 1e-5, True), out)
    sums = ops.batch_norm_backward_reduce(g, x, w, None, None, stats, 1e-5, True)
    flags = (None, None, stats, 1e-5, True, True, True, True, True)
    grads = ops.batch_norm_backward(g, x, w, *flags)
    assert_same(sums.float(), torch.stack((grads[1], grads[2])))
    operands = (g, x, w, None, None, stats, sums / 80, 1e-5, True, True, True)
    for ours, whole in zip(ops.batch_norm_backward_elemt(*operands), (grads[0], grads[3]), strict=True):
        torch.testing.assert_close(ours, whole)
    for op, args in (
        (ops.batch_norm_stats, (x,)),
        (ops.batch_norm_elemt, (x, w, None, g, stats, 1e-5, False)),
        (ops.batch_norm_backward_reduce, (g, x, w, None, None, stats, 1e-5, False)),
        (ops.batch_norm_backward_elemt, operands),
    ):
        torch.library.opcheck(op.default, args, test_utils=("test_schema", "test_faketensor"))
