"""explain: what ran, why, and at what least cost."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convnorm
from convnorm import explain


def test_forward_of_a_convolution():
    layer, x = convnorm.nn.Conv2d(3, 10, 5, padding=2), torch.randn(1, 3, 32, 32)
    told = explain(layer, x)
    (call,) = told.calls
    assert (call.op, call.phase) == ("conv_forward", "forward")
    assert call.flops == 2 * 768_000  # the worked example of the course
    assert call.bytes == 4 * (3 * 32 * 32 + 10 * 32 * 32 + 760)
    assert told.kernels == [v.kernel for v in call.kernels if v.chosen] and len(told.kernels) == 1
    assert told.isa == convnorm.backends.isa() and told.threads == torch.get_num_threads()


@pytest.mark.parametrize(
    "layer, size",
    [
        (nn.Conv2d(4, 6, 3, 2, 1, 2, 2), (2, 4, 9, 8)),
        (nn.Conv1d(3, 5, 4), (2, 3, 11)),
        (nn.Conv3d(2, 2, 3), (1, 2, 4, 5, 6)),
    ],
    ids=["2d", "1d", "3d"],
)
def test_flop_counter_counts_what_it_counts_for_torch(layer, size):
    counts = []
    for net in (layer, convnorm.convert(layer)):
        with FlopCounterMode(display=False) as counter:
            net(torch.randn(size, requires_grad=True)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_every_refusal_has_a_reason():
    told = explain(convnorm.nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))
    names = [row["kernel"] for row in convnorm.backends.kernels("conv_forward")]
    assert [v.kernel for v in told.calls[0].kernels] == names
    assert all(v.chosen or v.refusal for v in told.calls[0].kernels)


def test_a_pinned_kernel_shows():
    with convnorm.backends.force(conv_forward="conv_im2col"):
        told = explain(convnorm.functional.conv2d, torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3))
    assert told.kernels == ["conv_im2col"]
    assert "another kernel is forced by name" in str(told)


def test_backward_leaves_no_trace_on_the_model():
    model = nn.Sequential(convnorm.nn.Conv2d(3, 4, 3), convnorm.nn.BatchNorm2d(4), convnorm.nn.MaxPool2d(2))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    random_before = torch.get_rng_state()
    told = explain(model, x, backward=True)
    ops = [(c.op, c.phase) for c in told.calls]
    assert ops[0] == ("conv_forward", "forward")
    assert {("conv_by_input", "backward"), ("conv_by_weight", "backward")} <= set(ops)
    conv = [c for c in told.calls if c.op.startswith("conv")]
    assert len({c.flops for c in conv}) == 1, "the three sides of a convolution cost the same"
    assert all(p.grad is None for p in model.parameters()) and not x.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_before)


def test_page_and_repr():
    told = explain(convnorm.nn.Conv1d(2, 4, 3, stride=2), torch.randn(1, 2, 9), backward=True)
    page = str(told)
    for part in ("conv_forward (forward)", "conv_by_weight (backward)", "-> ", "chosen: ", "FLOP per byte",
                 "input float32 (1, 2, 9) contiguous", "instruction set"):  # fmt: skip
        assert part in page
    assert repr(told).startswith("<Explanation: 3 calls, kernels conv_")


def test_a_model_of_torch_says_so():
    told = explain(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))
    assert told.calls == () and "the layers are torch's own" in str(told)
