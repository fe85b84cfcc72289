"""fold: each rule and each refusal, every kind of layer, every model."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convnorm
from convnorm import convert, fold
from convnorm.testing import max_error
from tests.networks import prepared
from tests.test_models import MODELS

SIZES = {1: (2, 8, 9), 2: (2, 8, 6, 5), 3: (2, 8, 4, 3, 5)}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def pair(layer=None, norm=None):
    """A convolution and a batch norm with trained statistics, in evaluation."""
    return prepared(nn.Sequential(layer or nn.Conv2d(8, 4, 3), norm or nn.BatchNorm2d(4))).eval()


def outcome(model, *args, **kwargs):
    """{name: reason, or the layer that it went into} and that the answers on a random input did not change."""
    return {e.name: e.into or e.reason for e in fold(model, *args, **kwargs).entries}


def assert_unchanged(model, x, **kwargs):
    """Folds, which must refuse everything and leave the state as it was; the only reason."""
    before, y = copy.deepcopy(model.state_dict()), model(x)
    report = fold(model, **kwargs)
    assert not report.folded and torch.equal(model(x), y)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    return report


@pytest.mark.parametrize("ours", [False, True], ids=["torch", "convnorm"])
@pytest.mark.parametrize("sampled", [False, True], ids=["blind", "sampled"])
@pytest.mark.parametrize("name", MODELS)
def test_every_batch_norm_of_every_model(name, sampled, ours):
    make, size = MODELS[name]
    model, x = prepared(make()).eval(), torch.randn(size)
    if ours:
        convert(model)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = model(x)
    report = fold(model, x if sampled else None)
    assert report.folded == norms and len(norms) > 1
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert not any("running" in key for key in model.state_dict())
    assert max_error(model(x), before) < 1e-5 * float(before.detach().abs().max())
    if sampled:
        assert report.error <= report.bound < 1e-4


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("source", [nn, convnorm.nn], ids=["torch", "convnorm"])
def test_convolutions(source, n, kind, groups, bias):
    layer = getattr(source, f"{kind}{n}d")(8, 12, 3, stride=2, padding=1, groups=groups, bias=bias)
    model = pair(layer, getattr(source, f"BatchNorm{n}d")(12)).double()
    x = torch.randn(SIZES[n], dtype=torch.float64)
    before, weight = model(x), layer.weight
    assert outcome(model, x) == {"1": "0"}
    torch.testing.assert_close(model(x), before, rtol=1e-13, atol=1e-13)
    assert isinstance(model[1], nn.Identity) or n == 1
    assert model[0] is layer and layer.bias is not None and layer.weight is not weight and layer.weight.requires_grad


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False), nn.SyncBatchNorm(6)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(norm, bias):
    model, x = pair(nn.Linear(5, 6, bias=bias), copy.deepcopy(norm)), torch.randn(3, 5)
    before = model(x)
    assert outcome(model, x) == {"1": "0"}
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, eps=0.1, momentum=None)])
def test_settings_of_batch_norm(norm):
    model, x = pair(norm=norm), torch.randn(2, 8, 6, 6)
    before = model(x)
    assert outcome(model, x) == {"1": "0"}
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_weights_are_rounded_once_and_keep_dtype_and_layout(dtype):
    model = pair().to(dtype, memory_format=torch.channels_last)
    conv, norm = copy.deepcopy(model).double()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    exact = conv.weight * scale.view(-1, 1, 1, 1), (conv.bias - norm.running_mean) * scale + norm.bias
    fold(model, torch.randn(2, 8, 6, 6, dtype=dtype))
    for new, wanted in zip((model[0].weight, model[0].bias), exact, strict=True):
        assert new.dtype == dtype
        torch.testing.assert_close(new.double(), wanted, rtol=0.5 * torch.finfo(dtype).eps + 1e-15, atol=1e-7)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


class Residual(nn.Module):
    """Convolution, then batch norm with a residual and an activation in one layer."""

    def __init__(self, act="relu"):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), convnorm.nn.BatchNormAct2d(4, act=act)

    def forward(self, x):
        return self.norm(self.conv(x), residual=x)


@pytest.mark.parametrize("act", ["relu", None])
def test_batch_norm_with_activation_keeps_it(act):
    x = torch.randn(2, 4, 6, 6)
    for model in (pair(nn.Conv2d(4, 4, 3), convnorm.nn.BatchNormAct2d(4, act=act)), prepared(Residual(act)).eval()):
        before = model(x)
        assert len(fold(model, x).folded) == 1
        torch.testing.assert_close(model(x), before)
        assert (float(model(x).detach().min()) >= 0) == (act == "relu")
        assert not fold(model, x).entries, "a second fold finds nothing, and can trace what the first left"


def test_batch_norm_1d_folds_only_for_outputs_with_channels_second():
    model, square = pair(nn.Linear(5, 6), nn.BatchNorm1d(6)), torch.randn(2, 6, 5)
    assert "the 3D output of 0 has its channels in another dimension" in outcome(model, square)["1"]
    fold(model)
    with pytest.raises(ValueError, match=r"expected 2D input \(got 3D input\)"):
        model(square)


class Net(nn.Module):
    """A convolution and a batch norm, used by the given forward."""

    def __init__(self, forward, conv=None, norm=None, **more):
        super().__init__()
        self.conv, self.norm, self.run = conv or nn.Conv2d(4, 4, 1), norm or nn.BatchNorm2d(4), forward
        for name, module in more.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


def hooked(module, name="register_forward_hook"):
    getattr(module, name)(lambda *_: None)
    return module


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def replaced(module):
    module.forward = lambda x: x
    return module


def shared_weight():
    net = Net(lambda s, x: s.norm(s.conv(x)) + s.other(x), other=nn.Conv2d(4, 4, 1))
    net.other.weight = net.conv.weight
    return net


def half_overflow():
    net = Net(lambda s, x: s.norm(s.conv(x)), norm=nn.BatchNorm2d(4, affine=False))
    net.norm.running_var.fill_(0)
    net.conv.weight.data.fill_(1000)
    return net


def plain(s, x):
    return s.norm(s.conv(x))


REFUSALS = {
    "conv twice": (Net(lambda s, x: s.norm(s.conv(s.conv(x)))), "conv stays as it is: it is used 2 times"),
    "norm twice": (Net(lambda s, x: s.norm(s.norm(s.conv(x)))), "it is used 2 times"),
    "norm unused": (Net(lambda s, x: s.conv(x)), "the traced forward does not use it"),
    "output elsewhere": (
        Net(lambda s, x: s.norm(y := s.conv(x)) + y.relu()), "the output of conv is also used by relu"),
    "output returned": (Net(lambda s, x: s.norm(y := s.conv(x)) * 0 + y), "is also used by add"),
    "output as residual": (
        Net(lambda s, x: s.norm(y := s.conv(x), y), norm=convnorm.nn.BatchNormAct2d(4)), "also used by the residual"),
    "relu between": (Net(lambda s, x: s.norm(s.conv(x).relu())), "it follows a call of relu, which is no"),
    "pool between": (Net(lambda s, x: s.norm(s.pool(x)), pool=nn.MaxPool2d(1)), r"follows pool \(MaxPool2d\)"),
    "input": (Net(lambda s, x: s.conv(s.norm(x))), "it follows an input of the model"),
    "weight read": (Net(lambda s, x: s.norm(s.conv(x)) + s.conv.weight.sum()), "the model reads conv.weight itself"),
    "statistics read": (Net(lambda s, x: plain(s, x) + s.norm.running_var[0]), "the model reads norm.running_var"),
    "shared weight": (shared_weight(), "conv shares parameters with another module"),
    "parametrised": (
        Net(plain, nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))), "conv stays as it is: its weights are"),
    "old weight norm": (Net(plain, nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))), "its weights are parametrised"),
    "conv hook": (Net(plain, hooked(nn.Conv2d(4, 4, 1))), "conv stays as it is: it has hooks"),
    "norm hook": (Net(plain, norm=hooked(nn.BatchNorm2d(4), "register_forward_pre_hook")), "it has hooks"),
    "container hook": (
        Net(lambda s, x: s.norm(s.box(x)), box=hooked(nn.Sequential(nn.Conv2d(4, 4, 1)))), r"s box \(Sequential\)"),
    "inside a hook": (
        Net(lambda s, x: s.box(x), box=hooked(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))), "part of box"),
    "own forward": (Net(plain, Scaled(4, 4, 1)), "it follows a call of mul"),
    "replaced forward": (Net(plain, replaced(nn.Conv2d(4, 4, 1))), "its forward is not torch's or convnorm's own"),
    "no statistics": (Net(plain, norm=nn.BatchNorm2d(4, track_running_stats=False)), "it has no running statistics"),
    "overflow": (half_overflow().half(), "the folded weights of conv would not be finite in torch.float16"),
}  # fmt: skip


@pytest.mark.parametrize("sampled", [False, True], ids=["blind", "sampled"])
@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name, sampled):
    model, reason = copy.deepcopy(REFUSALS[name])
    x = torch.randn(2, 4, 3, 3, dtype=next(model.parameters()).dtype)
    report = assert_unchanged(model.eval(), x, sample=x if sampled else None)
    page = str(report)
    assert page.startswith(f"0 of {len(report.entries)} batch norms folded")
    assert re.search(reason, page), page


class Odd(nn.Conv2d):
    """A subclass that computes what its base does."""


def test_a_subclass_that_inherits_its_forward_folds():
    model, x = pair(Odd(8, 4, 3)), torch.randn(2, 8, 6, 6)
    before = model(x)
    assert outcome(model) == {"1": "0"}
    torch.testing.assert_close(model(x), before)


def test_shapes_may_be_read():
    model = Net(lambda s, x: s.norm(y := s.conv(x)).view(y.shape[0], y.size(1), -1)).eval()
    assert outcome(copy.deepcopy(model)) == outcome(model, torch.randn(2, 4, 3, 3)) == {"norm": "conv"}


def test_a_batch_norm_in_training_mode_stays():
    model = pair()
    model[1].train()
    assert "it is in training mode" in str(fold(model))


def test_a_model_in_training_mode_is_an_error():
    with pytest.raises(RuntimeError, match=r"fold: the model is in training mode.*call model.eval\(\) first"):
        fold(pair().train())


@pytest.mark.parametrize("exclude", ["0", "1", nn.BatchNorm2d, lambda name, m: name == "0"])
def test_exclude(exclude):
    report = assert_unchanged(pair(), torch.randn(1, 8, 5, 5), exclude=exclude)
    assert "excluded" in report.entries[0].reason


def test_exclude_that_matches_nothing():
    with pytest.raises(ValueError, match=r"fold: exclude \['head'\] matches no module"):
        fold(pair(), exclude="head")


def test_decisions_by_shape_need_the_sample():
    def checked(s, x):
        if x.shape[1] != 4:
            raise ValueError("channels")
        return plain(s, x)

    model, x = Net(checked).eval(), torch.randn(2, 4, 3, 3)
    report = assert_unchanged(model, x)
    assert "0 of 1 batch norms folded: torch.fx cannot trace this model (TraceError" in str(report)
    assert fold(model, x).folded == ["norm"]


def kept_attribute(s, x):
    s.last = s.conv(x)
    return s.norm(s.last)


@pytest.mark.parametrize(
    "forward, reason",
    [
        (lambda s, x: plain(s, x) if x.sum() > 0 else x, "TraceError"),
        (kept_attribute, "keeps a tensor of its forward in 'last'"),
        (lambda s, x: {"y": [plain(s, x)], "own": s}, "returns a Net, whose contents cannot be seen"),
    ],
    ids=["values", "attribute", "output"],
)
def test_what_cannot_be_followed_folds_nothing(forward, reason):
    model, x = Net(forward).eval(), torch.randn(2, 4, 3, 3)
    report = fold(model, x)
    assert not report.folded and reason in report.refusal and type(model.norm) is nn.BatchNorm2d
    assert "last" not in vars(model) or isinstance(model.last, torch.Tensor), "the trace leaves nothing in the model"


def test_every_reference_to_a_module_sees_the_fold():
    model = Net(lambda s, x: s.steps[0][1](s.steps[0][0](x)))
    model.steps = [(model.conv, model.norm)]  # a plain list, which setattr on the model would not reach
    x = torch.randn(2, 4, 3, 3)
    before = prepared(model).eval()(x)
    assert fold(model).folded == ["norm"]
    torch.testing.assert_close(model(x), before)


def test_arguments_of_the_sample():
    class Two(Net):
        def forward(self, x, scale=None, *, flip=False):
            y = self.norm(self.conv(x if scale is None else x * scale))
            return y.flip(0) if flip else (y, None)

    x = torch.randn(2, 4, 3, 3)
    for sample in (None, x, (x, x), {"x": x, "flip": True}):
        assert fold(Two(None).eval(), sample).folded == ["norm"]


def test_a_fold_that_changes_the_answers_is_undone(monkeypatch):
    model, x = pair(nn.Conv2d(8, 4, 3, bias=False)), torch.randn(2, 8, 6, 6)
    before, state = model(x), copy.deepcopy(model.state_dict())
    real = convnorm._folding.rules.folded
    monkeypatch.setattr(convnorm._folding.rules, "folded", lambda *a: tuple(1.001 * t for t in real(*a)))
    with pytest.raises(RuntimeError, match=r"differ by 0\.00\d+, more than the .*; the model is as it was"):
        fold(model, x)
    assert type(model[1]) is nn.BatchNorm2d and model[0].bias is None and torch.equal(model(x), before)
    assert list(model.state_dict()) == list(state)


def test_functionals_of_convnorm_are_single_steps():
    model = Net(lambda s, x: convnorm.functional.max_pool2d(F.relu(s.norm(s.conv(x))), 2)).eval()
    assert fold(model).folded == ["norm"]


def test_report():
    model = nn.Sequential(pair(), nn.BatchNorm2d(4)).eval()
    page = str(fold(model, torch.randn(1, 8, 5, 5)))
    assert page.startswith("1 of 2 batch norms folded; largest error on the sample")
    assert "0.1     BatchNorm2d  folded into 0.0" in page and "kept: it follows 0.1 (BatchNorm2d)" in page
    assert str(fold(nn.Sequential(nn.ReLU()).eval())).startswith("0 of 0 batch norms folded, 0 of 1 ReLUs\n")
    assert str(fold(nn.Sequential(nn.Tanh()).eval())) == "0 of 0 batch norms folded"
