"""The tools of the course: true convolution, receptive fields, filters, shifts, and algorithms by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal
from torch import nn
from torch.nn import functional as F

import convnorm
from convnorm import analysis, backends, cli
from convnorm.models import LeNet5

PAGE = Path(__file__).resolve().parent.parent / "docs/course-tools.md"


def integers(*shape, seed=0):
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).double()


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 4), st.sampled_from(["full", "same", "valid"]))
def test_convolve2d_is_scipys(sizes, mode):
    h, w, k_h, k_w = sizes
    x, k = integers(h, w), integers(k_h, k_w, seed=1)
    try:
        expected = signal.convolve2d(x.numpy(), k.numpy(), mode)
    except ValueError:  # neither fits in the other
        with pytest.raises(ValueError, match="needs one operand to fit in the other"):
            analysis.convolve2d(x, k, mode)
        return
    assert torch.equal(analysis.convolve2d(x, k, mode), torch.from_numpy(expected))


def test_convolve2d_runs_on_convnorms_kernel_with_the_kernel_turned():
    x, k = integers(7, 9), integers(3, 3, seed=1)
    told = convnorm.explain(analysis.convolve2d, x, k, "valid")
    assert [call.op for call in told.calls] == ["conv_forward"]
    assert torch.equal(analysis.convolve2d(x, k, "valid"), F.conv2d(x[None, None], k.flip(0, 1)[None, None])[0, 0])
    turned = analysis.convolve2d(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "same")
    assert turned.tolist() == [[1.0, 2.0], [3.0, 5.0]]


@pytest.mark.parametrize("arguments, words", [
    ((torch.ones(3), torch.ones(1, 1)), r"image has shape \(3,\), must be"),
    ((torch.ones(3, 3), torch.ones(0, 2)), r"kernel has shape \(0, 2\), must be"),
    ((torch.ones(3, 3), torch.ones(1, 1), "circular"), "mode 'circular' must be one of 'full', 'same', 'valid'"),
])  # fmt: skip
def test_convolve2d_says_what_is_wrong(arguments, words):
    with pytest.raises(ValueError, match=words):
        analysis.convolve2d(*arguments)


class Branches(nn.Module):
    """Windows that no layer stands for, a branch, and max pooling with ceil_mode and dilation."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, 3, 5))
        self.norm, self.body = nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.pool = nn.MaxPool2d(3, 2, dilation=2, ceil_mode=True)

    def forward(self, x):
        x = F.max_pool2d(F.conv2d(x, self.weight, stride=(2, 1)), 2)
        return self.pool(x + F.relu(self.body(self.norm(x))))


def stacked(kernel, count):
    return nn.Sequential(*(nn.Conv1d(2, 2, kernel, padding=kernel // 2) for _ in range(count)))


@pytest.mark.parametrize("model, size, layer", [
    (LeNet5(norm=False), (1, 28, 28), "pool2"),
    (LeNet5(convnorm.nn), (1, 28, 28), "bn2"),
    (Branches(), (2, 96, 96), None),
    (stacked(3, 12), (2, 60), None),
    (nn.Sequential(nn.Conv3d(1, 2, (1, 2, 3), stride=(1, 2, 1)), nn.AvgPool3d(2)), (1, 9, 14, 15), None),
    (nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(64, 3)), (1, 10, 10), "1"),
], ids=["lenet", "lenet-convnorm", "branches", "1d", "3d", "before-linear"])  # fmt: skip
def test_the_formula_is_what_gradients_reach(model, size, layer):
    if layer == "1":  # a flattened map has no positions
        assert analysis.receptive_field_by_gradient(model, size) == size[1:]
        layer = "0"
    by_formula = analysis.receptive_field(model, size, layer).field
    assert analysis.receptive_field_by_gradient(model, size, layer) == by_formula


def test_receptive_fields_of_the_course():
    assert analysis.receptive_field(stacked(3, 12), (2, 60)).field == (1 + 12 * 2,)
    assert analysis.receptive_field(LeNet5(), (1, 28, 28), "pool2") == analysis.Field((16, 16), (4, 4))
    half = analysis.receptive_field_by_gradient(stacked(3, 12), (2, 20))
    assert half == (20,), "no more than the input"


def test_receptive_field_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="layer 'conv9' must be a layer that runs"):
        analysis.receptive_field(LeNet5(), (1, 28, 28), "conv9")
    with pytest.raises(ValueError, match=r"of layer 'convtranspose2d' \(ConvTranspose2d\) is not known"):
        analysis.receptive_field(nn.ConvTranspose2d(1, 1, 3), (1, 8, 8))
    with pytest.raises(ValueError, match="layer 'conv9' must be the name of a module"):
        analysis.receptive_field_by_gradient(LeNet5(), (1, 28, 28), "conv9")


def test_filters_in_colour_and_grey(tmp_path):
    layer = convnorm.nn.Conv2d(3, 10, 5)
    with torch.no_grad():
        layer.weight[0] = 0.0
        layer.weight[1] = torch.tensor([1.0, -1.0, 0.0])[:, None, None]
    image = analysis.filters_image(layer, tmp_path / "deep" / "filters.png", scale=2)
    assert image.shape == (2 * (3 * 6 + 1), 2 * (4 * 6 + 1), 3) and image.dtype == torch.uint8
    assert image[2:12, 2:12].unique().tolist() == [128], "zero is the middle grey"
    assert image[5, 17].tolist() == [255, 0, 128], "opposing colours"
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep" / "filters.png")), image.numpy())
    assert analysis.filters_image(nn.Conv2d(1, 20, 5)).shape == (8 * (4 * 6 + 1), 8 * (5 * 6 + 1))
    assert analysis.filters_image(torch.ones(2, 7, 3, 3), scale=1).shape == (2 * 4 + 1, 7 * 4 + 1)
    both = torch.stack([torch.full((1, 1, 1), 1.0), torch.full((1, 1, 1), 0.5)])
    assert analysis.filters_image(both, scale=1)[1, [1, 3]].tolist() == [255, 255]
    assert analysis.filters_image(both, scale=1, each=False)[1, [1, 3]].tolist() == [255, 191]


@pytest.mark.parametrize("layer, options, words", [
    (nn.ReLU(), {}, "layer is ReLU, must be a 2-d convolution"),
    (nn.Conv1d(1, 1, 3), {}, r"a weight of shape \(1, 1, 3\), must be a 2-d convolution"),
    (torch.ones(0, 1, 3, 3), {}, "must not be empty"),
    (nn.Conv2d(1, 1, 3), {"scale": 0}, "scale 0 must be at least 1"),
])  # fmt: skip
def test_filters_says_what_is_wrong(layer, options, words):
    with pytest.raises(ValueError, match=words):
        analysis.filters_image(layer, **options)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_moves_with_its_input(n, stride):
    layer = getattr(convnorm.nn, f"Conv{n}d")(3, 4, 3, stride=stride, padding=1).double()
    with torch.no_grad():
        layer.weight.copy_(integers(*layer.weight.shape))
    x = integers(2, 3, *[14] * n, seed=1)
    for shift in (0, 2, -4):
        found = analysis.equivariance(layer, x, shift, stride, margin=1)
        assert (found.share, found.largest, found.change) == (1.0, 0.0, 0.0) and found.positions > 0


def test_a_layer_with_positions_in_it_does_not_move_along():
    table = torch.randn(1, 1, 12, 12)
    found = analysis.equivariance(lambda x: x * table, torch.ones(1, 1, 12, 12), 2)
    assert found.share < 0.1 and found.largest > 0.1 and "shift (2, 2)" in str(found)


def test_pooling_forgives_small_shifts_of_digits():
    digits = convnorm.data.digits()[0][::50]
    plain, *pooled = (
        analysis.invariance(layer, digits, (0, 1)).change
        for layer in (nn.Identity(), *(convnorm.nn.MaxPool2d(k) for k in (2, 4, 7)))
    )
    assert plain > pooled[0] > pooled[1] > pooled[2]
    assert pooled[2] < plain / 2
    assert analysis.invariance(nn.AdaptiveMaxPool2d(1), digits, 1).share == 1.0


def test_shifts_that_make_no_sense():
    x, layer = torch.ones(1, 1, 8, 8), nn.Conv2d(1, 1, 3, stride=2)
    for call, words in (
        (lambda: analysis.equivariance(layer, x, 3, stride=2), r"shift \(3, 3\) must be divisible by stride 2"),
        (lambda: analysis.equivariance(layer, x, 2, stride=2, margin=2), "leave nothing of an output of"),
        (lambda: analysis.invariance(layer, x, (1, 2, 3)), r"shift \(1, 2, 3\) must be one integer, or 2"),
        (lambda: analysis.invariance(layer, x[0, 0], 1), r"input has shape \(8, 8\), must be"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert not analysis.shifted(x, (9, 0)).any(), "everything has left"


def test_every_algorithm_gives_the_same_convolution():
    x, w = torch.randn(1, 16, 12, 12), torch.randn(16, 16, 3, 3)
    found = {re.sub("_(amx|avx512|avx2|generic)$", "", a.kernel): a
             for a in analysis.compare_algorithms(x, w, torch.randn(16), seconds=0.01, padding=1)}  # fmt: skip
    igemm = next(name for name in found if name.startswith(("conv_igemm_6", "conv_igemm_12")))
    assert found["conv_depthwise"].refusal == "not depthwise: groups differ from channels"
    for name in ("conv_winograd", igemm, "conv_im2col", "torch"):
        assert not found[name].refusal and found[name].microseconds > 0
        if "winograd" not in name:  # its bound is in test_winograd.py
            assert found[name].error <= 2 * found["torch"].error + torch.finfo(torch.float32).eps
    assert found["conv_winograd"].error > found[igemm].error
    assert found["conv_im2col"].error <= found[igemm].error, "its sums are in double"
    assert backends.kernels("conv_forward") and convnorm._C.forced_kernel("conv_forward") == ""
    assert not backends.winograd(), "as it was"


@pytest.mark.parametrize("lesson, words", [("shifts", "Invariance"), ("algorithms", "conv_im2col")])
def test_lessons_print_and_draw(lesson, words, tmp_path, capsys):
    picture = tmp_path / "lesson.png"
    assert cli.main(["demo", lesson, "--out", str(picture), "--threads", "1"]) == 0
    assert words in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) >= 5
    scope = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), scope)
