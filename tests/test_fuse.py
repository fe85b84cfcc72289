"""Convolution, sum and ReLU as one call: in place by `fold`, in a graph by `fuse`. What must not be joined is not."""

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convnorm
from convnorm import convert, explain, fold, fuse
from convnorm.nn import BatchNormAct2d, Conv2d, ConvAct1d, ConvAct2d, ConvNormAct2d
from convnorm.testing import assert_same, max_error
from tests.networks import prepared
from tests.test_fold import Net, hooked, plain
from tests.test_models import MODELS


def ops_of(model, *args):
    """The convnorm ops that a call runs, without gradients."""
    return [call.op for call in explain(model, *args).calls]


def close(a, b):
    return max_error(a, b) <= 1e-5 * max(1.0, float(b.detach().abs().max()))


def conv(n=4, **kwargs):
    return Conv2d(n, n, 3, padding=1, **kwargs)


# --- fold: modules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_relu_module_goes_into_its_convolution(n, norm, inplace):
    layers = [getattr(convnorm.nn, f"Conv{n}d")(4, 6, 3), getattr(convnorm.nn, f"BatchNorm{n}d")(6), nn.ReLU(inplace)]
    model, x = prepared(nn.Sequential(*layers if norm else layers[::2])).eval(), torch.randn(2, 4, *[6] * n)
    before, first = model(x), model[0]
    report = fold(model, x)
    assert report.fused == [str(len(model) - 1)] and close(model(x), before)
    assert model[0] is first and type(first) is getattr(convnorm.nn, f"ConvAct{n}d") and first.act == "relu"
    assert type(model[-1]) is nn.Identity and ops_of(model, x) == ["conv_act"]
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    again = fold(model, x)
    assert not again.folded and not again.fused


@pytest.mark.parametrize("act", ["relu", None])
@pytest.mark.parametrize("residual", [False, True])
def test_batch_norm_act_is_one_call(residual, act):
    forward = (lambda s, x: s.norm(s.conv(x), residual=x)) if residual else plain
    model, x = prepared(Net(forward, conv(), BatchNormAct2d(4, act=act))).eval(), torch.randn(2, 4, 6, 6)
    before, weight = model(x), model.conv.weight.shape
    report = fold(model, x)
    assert report.folded == ["norm"] and close(model(x), before)
    assert ops_of(model, x) == ["conv_act" if residual or act else "conv_forward"]
    if residual:
        assert list(model.state_dict()) == ["norm.weight", "norm.bias"] and model.norm.weight.shape == weight
        assert model.conv.out_channels == 4, "what a forward may read of a convolution stays"
        assert "folded into conv, with its residual" in str(report)
    assert fold(model, x).folded == []


def test_conv_norm_act_blocks():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = ConvNormAct2d(3, 4, 3, padding=1), ConvNormAct2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.a(x)
            return self.b(x, x)

    model, x = prepared(Blocks()).eval(), torch.randn(2, 3, 8, 8)
    before = model(x)
    for one_call in (fuse(model, x), model):
        if one_call is model:
            assert len(fold(model, x).folded) == 2
        assert close(one_call(x), before) and ops_of(one_call, x) == ["conv_act", "conv_act"]


def test_residual_of_one_dimension_stays_apart():
    """BatchNorm1d takes 2D inputs as well, which must be noticed before the residual is added."""
    net = Net(lambda s, x: s.norm(s.conv(x), x), convnorm.nn.Conv1d(4, 4, 1), convnorm.nn.BatchNormAct1d(4))
    model, x = prepared(net).eval(), torch.randn(2, 4, 6)
    before = model(x)
    assert "residual and activation stay: the rank" in str(fold(model, x)) and close(model(x), before)
    with pytest.raises(ValueError, match="expected 3D input"):
        model(x[0])


RELU_STAYS = {
    "torch's": (Net(lambda s, x: s.act(plain(s, x)), act=nn.ReLU()), "conv is torch's Conv2d: convnorm.convert makes"),
    "twice": (Net(lambda s, x: s.act(s.act(plain(s, x))), conv(), act=nn.ReLU()), "it is used 2 times"),
    "output elsewhere": (
        Net(lambda s, x: s.act(y := s.norm(s.conv(x))) + y, conv(), act=nn.ReLU()), "norm is also used by add"),
    "convolution elsewhere": (
        Net(lambda s, x: s.act(y := s.conv(x)) + y, conv(), nn.Identity(), act=nn.ReLU()), "conv is also used by add"),
    "conv twice": (Net(lambda s, x: s.act(s.conv(s.conv(x))), conv(), nn.Identity(), act=nn.ReLU()), "used 2 times"),
    "after a sum": (Net(lambda s, x: s.act(plain(s, x) + x), conv(), act=nn.ReLU()), "it follows a call of add"),
    "hook": (Net(lambda s, x: s.act(plain(s, x)), conv(), act=hooked(nn.ReLU())), "it has hooks"),
    "hook of the convolution": (Net(lambda s, x: s.act(plain(s, x)), hooked(conv()), act=nn.ReLU()), "conv stays as"),
    "weight read": (
        Net(lambda s, x: s.act(plain(s, x)) + s.conv.weight.sum(), conv(), act=nn.ReLU()), "reads conv.weight itself"),
    "relu after relu": (
        Net(lambda s, x: s.act(plain(s, x)), conv(), BatchNormAct2d(4), act=nn.ReLU()), "an activation of its own"),
    "transposed": (Net(lambda s, x: s.act(plain(s, x)), convnorm.nn.ConvTranspose2d(4, 4, 1), act=nn.ReLU()),
                   "conv is a ConvTranspose2d, which has no such call"),
}  # fmt: skip


@pytest.mark.parametrize("sampled", [False, True], ids=["blind", "sampled"])
@pytest.mark.parametrize("name", RELU_STAYS)
def test_relus_that_stay(name, sampled):
    model, reason = copy.deepcopy(RELU_STAYS[name])
    model, x = prepared(model).eval(), torch.randn(2, 4, 6, 6)
    before = model(x)
    report = fold(model, x if sampled else None)
    assert not report.fused and type(model.act) is nn.ReLU and reason in str(report), report
    assert close(model(x), before)


def test_a_residual_whose_convolution_reads_what_changes_stays():
    def forward(s, x):
        y = s.conv(x)
        x.mul_(2)
        return s.norm(y, x)

    model, x = prepared(Net(forward, conv(), BatchNormAct2d(4))).eval(), torch.randn(2, 4, 6, 6)
    before = model(x.clone())
    report = fold(model, x)
    assert report.folded == ["norm"] and "mul_ may change the input of conv in between" in str(report)
    assert close(model(x.clone()), before)


def test_a_fold_that_changes_the_answers_is_undone_altogether(monkeypatch):
    net = Net(lambda s, x: s.act(s.conv2(s.norm(s.conv(x), x))), conv(), BatchNormAct2d(4), conv2=conv(), act=nn.ReLU())
    model, x = prepared(net).eval(), torch.randn(2, 4, 6, 6)
    before, state, kinds = model(x), copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    real = convnorm._folding.rules.folded
    monkeypatch.setattr(convnorm._folding.rules, "folded", lambda *a: tuple(1.001 * t for t in real(*a)))
    with pytest.raises(RuntimeError, match="the model is as it was"):
        fold(model, x)
    assert [type(m) for m in model.modules()] == kinds and torch.equal(model(x), before)
    assert list(model.state_dict()) == list(state)


def test_the_sample_stays_as_it_is_and_in_place_sums_are_seen():
    """Of ``z = y; y += 1; norm(z)``: the batch norm does not follow the convolution directly."""

    def forward(s, x):
        x += 1
        y = z = s.conv(x)
        y += 1
        return s.norm(z)

    model, x = prepared(Net(forward, conv())).eval(), torch.randn(2, 4, 6, 6)
    kept = x.clone()
    report = fold(model, x)
    assert torch.equal(x, kept) and not report.folded
    assert "conv is also used by iadd" in str(report)


def test_the_folded_model_still_has_gradients():
    model, x = prepared(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())).eval(), torch.randn(2, 4, 6, 6)
    model.double()
    x = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    fold(model)
    torch.testing.assert_close(torch.autograd.grad(model(x).sum(), x)[0], expected)


# --- fuse: graphs -------------------------------------------------------------------------------------------

COUNTS = {  # (batch norms, convolutions, sums, ReLUs) of one call each
    "lenet": (2, 2, 0, 2),
    "resnet18": (20, 20, 8, 17),
    "resnet50": (53, 53, 16, 49),
    "vgg11": (8, 8, 0, 8),
    "mobilenet": (52, 52, 11, 0),  # its ReLUs are ReLU6
    "unet": (12, 11, 0, 10),  # two batch norms follow transposed convolutions
}


def counts(report):
    parts = [e.parts for e in report.entries]
    return len(report.folded.folded), len(parts), sum("a sum" in p for p in parts), sum("ReLU" in p for p in parts)


@pytest.mark.parametrize("ours", [False, True], ids=["torch", "convnorm"])
@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, fmt, ours):
    make, size = MODELS[name]
    model, x = prepared(make()).eval().to(memory_format=fmt), torch.randn(size).contiguous(memory_format=fmt)
    if ours:
        convert(model)
    before, state = model(x), copy.deepcopy(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    fused = fuse(model, x)
    assert counts(fused.report) == COUNTS[name], str(fused.report)
    assert fused.report.error <= fused.report.bound and not fused.report.sizes
    assert close(fused(x), before)
    with torch.no_grad():
        assert close(fused(x), before)
    other = torch.randn(3, *size[1:])
    assert close(fused(other), model(other)), "other sizes than the sample's"
    assert [type(m) for m in model.modules()] == kinds, "the model given stays as it was"
    assert_same(model(x), before)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_models_without_a_sample_join_no_sums(name):
    make, size = MODELS[name]
    model, x = prepared(make()).eval(), torch.randn(size)
    fused = fuse(model)
    assert counts(fused.report)[2] == 0 and fused.report.error is None
    assert close(fused(x), model(x))


class Torchvision(nn.Module):
    """The block as torchvision writes it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        identity = self.downsample(x)
        out += identity
        return self.relu(out)


def test_torchvisions_block_is_three_calls():
    model, x = prepared(Torchvision()).eval(), torch.randn(2, 4, 9, 9)
    fused = fuse(model, x)
    assert ops_of(fused, x) == ["conv_act", "conv_forward", "conv_act"] and close(fused(x), model(x))
    assert counts(fused.report) == (3, 3, 1, 2)
    assert "relu" not in fused.code.replace("relu_", "") and "+=" not in fused.code


RELUS = {
    "module": lambda s, y: s.act(y),
    "functional": lambda s, y: F.relu(y),
    "functional in place": lambda s, y: F.relu(y, inplace=True),
    "torch": lambda s, y: torch.relu(y),
    "torch in place": lambda s, y: torch.relu_(y),
    "method": lambda s, y: y.relu(),
    "method in place": lambda s, y: y.relu_(),
    "none": lambda s, y: y,
}


def iadd(a, b):
    a += b
    return a


SUMS = {
    "+": lambda y, r: y + r,
    "+ reversed": lambda y, r: r + y,
    "+=": iadd,
    "torch.add": lambda y, r: torch.add(y, r),
    "torch.add by name": lambda y, r: torch.add(r, other=y),
    "add": lambda y, r: y.add(r),
    "add_": lambda y, r: y.add_(r),
    "none": lambda y, r: y,
}


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("add", SUMS)
def test_every_way_to_write_it(add, relu):
    net = Net(lambda s, x: RELUS[relu](s, SUMS[add](s.norm(s.conv(x)), x)), act=nn.ReLU(True))
    model, x = prepared(net).eval(), torch.randn(2, 4, 5, 5)
    kept, before = x.clone(), model(x)
    fused = fuse(model, x)
    alone = add == relu == "none"
    assert ops_of(fused, x) == ["conv_forward" if alone else "conv_act"]
    calls = [n for n in fused.graph.nodes if n.op.startswith("call")]
    assert len(calls) == 1 and close(fused(x), before) and torch.equal(x, kept)


def later_residual(s, x):
    y = s.norm(s.conv(x))
    return F.relu(y + torch.sin(s.other(x)))


def changed_input(s, x):
    x = x * 1
    y = s.conv(x)
    x.mul_(2)
    return F.relu(y + x)


def changed_residual(s, x):
    r = x * 1
    y = s.conv(x) + r
    r.zero_()
    return F.relu(y) + r


def changed_view(s, x):
    x = x * 1
    view = x.view(-1)
    y = s.conv(x)
    view += 1
    return F.relu(y) + x


def over_the_residual(s, x):
    r = x * 1
    r += s.conv(x)
    return F.relu(r) + r


def two_names(s, x):
    y = z = s.conv(x)
    y += x
    return F.relu(z)


def branch(s, x):
    y = F.relu(s.conv(x))
    return y + s.other(y) + s.norm(y)


TRICKY = {  # forward, the ops that the graph must run, a word of the report
    "the residual is computed after the convolution": (later_residual, ["conv_forward", "conv_act"], "sum + ReLU"),
    "the input changes in between": (changed_input, ["conv_forward"], "mul_ may change what it is computed from"),
    "the residual changes before ReLU": (changed_residual, ["conv_act"], "zero_ may change"),
    "a view of the input changes": (changed_view, ["conv_forward"], "iadd may change"),
    "the sum is written over the residual": (over_the_residual, ["conv_forward"], "iadd writes the sum over the res"),
    "two names of one tensor": (two_names, ["conv_forward"], "its output is used 2 times"),
    "used before ReLU": (lambda s, x: F.relu(y := s.conv(x)) + y, ["conv_forward"], "its output is used 2 times"),
    "ReLU used twice": (branch, ["conv_act", "conv_act", "batch_norm_eval"], "convolution + a sum"),
    "sum used before ReLU": (
        lambda s, x: F.relu(y := s.conv(x) + x) + y, ["conv_act"], "its output is used 2 times"),
    "added to itself": (lambda s, x: F.relu((y := s.conv(x)) + y), ["conv_forward"], "adds it to itself"),
    "a factor": (lambda s, x: F.relu(torch.add(s.conv(x), x, alpha=2)), ["conv_forward"], "has a factor"),
    "a number": (lambda s, x: F.relu(s.conv(x) + 1), ["conv_forward"], "adds a number"),
    "a parameter": (
        lambda s, x: F.relu(s.conv(x) + s.conv.bias.view(1, -1, 1, 1)), ["conv_forward"], "the model reads conv.bias"),
    "broadcast": (lambda s, x: F.relu(s.conv(x) + x.mean((2, 3), keepdim=True)), ["conv_forward"], "different shapes"),
    "another dtype": (lambda s, x: F.relu(s.conv(x) + x.double()), ["conv_forward"], "shapes or dtypes"),
    "convolution used twice": (lambda s, x: F.relu(s.conv(F.relu(s.conv(x)))), ["conv_forward"] * 2, "used 2 times"),
    "two sums": (lambda s, x: F.relu(s.conv(x) + x + x), ["conv_act"], "add_1 comes next"),
    "reads a shape in between": (
        lambda s, x: F.relu((y := s.conv(x)).view(y.shape[0], 4, -1)), ["conv_forward"], "is used 2 times"),
    "returned": (lambda s, x: s.conv(x), ["conv_forward"], "it is returned"),
    "something else": (lambda s, x: F.gelu(s.conv(x)), ["conv_forward"], "gelu comes next"),
    "relu into itself": (lambda s, x: F.relu(F.relu(s.conv(x))), ["conv_act"], "convolution + ReLU"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKY)
def test_tricky_forwards(name):
    forward, ops, words = TRICKY[name]
    model = prepared(Net(forward, nn.Conv2d(4, 4, 3, padding=1), other=nn.Conv2d(4, 4, 1))).eval()
    x = torch.randn(2, 4, 6, 6)
    kept, before = x.clone(), model(x)
    fused = fuse(model, x)
    assert words in str(fused.report), str(fused.report)
    assert sorted(op for op in ops_of(fused, x) if not op.startswith("max")) == sorted(ops)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            assert max_error(fused(x), before) <= 1e-5 and torch.equal(x, kept)


def test_a_constant_of_the_output_s_size_is_no_residual():
    """With another batch it would have to be broadcast."""
    model = prepared(Net(lambda s, x: F.relu(s.conv(x) + s.place), place=None)).eval()
    model.place = nn.Parameter(torch.randn(1, 4, 5, 5))
    fused = fuse(model, torch.randn(1, 4, 5, 5))
    assert "adds a constant" in str(fused.report)
    x = torch.randn(3, 4, 5, 5)
    assert close(fused(x), model(x))


@pytest.mark.parametrize("part", ["conv", "norm", "act"])
def test_exclude_and_hooks(part):
    x, called = torch.randn(2, 4, 5, 5), []
    for hook in (False, True):
        model = prepared(Net(lambda s, x: s.act(plain(s, x) + x), act=nn.ReLU())).eval()
        if hook:
            getattr(model, part).register_forward_hook(lambda *_: called.append(1))
        fused = fuse(model, x, exclude=() if hook else part)
        joined = fused.report.entries[0].parts if fused.report.entries else ()
        assert joined == {"conv": (), "norm": (), "act": ("a sum",)}[part]
        assert close(fused(x), model(x))
    assert called


def test_arguments_and_what_is_returned():
    Pair = namedtuple("Pair", "first second")

    class Many(Net):
        def forward(self, image, scale, flip=False, *, mask=None):
            y = F.relu(self.norm(self.conv(image)) + image)
            y = y.flip(0) if flip else y * scale
            y = y if mask is None else y * mask
            return {"y": [y, None], "pair": (y, 3)} if scale else Pair(y, y)

    model, x = prepared(Many(None)).eval(), torch.randn(2, 4, 5, 5)
    fused = fuse(model, {"image": x, "scale": 2.0, "mask": x > 0})
    out, expected = fused(x, mask=x < 0), model(x, 2.0, mask=x < 0)
    assert close(out["y"][0], expected["y"][0]) and out["y"][1] is None and out["pair"][1] == 3
    assert close(fused(image=x, mask=x < 0)["y"][0], out["y"][0])
    assert close(fuse(model, (x, 2.0, True))(x)["y"][0], model(x, 2.0, True)["y"][0])
    with pytest.raises(RuntimeError, match="fuse: the model returns a Pair, which a graph cannot"):
        fuse(model, (x, 0.0))


def test_decisions_by_shape_take_the_sample_s():
    def checked(s, x):
        if x.shape[1] != 4:
            raise ValueError("channels")
        return F.relu(plain(s, x) + x)

    model, x = Net(checked).eval(), torch.randn(2, 4, 3, 3)
    fused = fuse(model, x)
    assert fused.report.sizes and "for inputs of the sample's sizes" in str(fused.report)
    assert ops_of(fused, x) == ["conv_act"] and close(fused(x), model(x))
    with pytest.raises(RuntimeError, match=r"fuse: torch\.fx cannot trace this model"):
        fuse(model)


def test_sizes_stay_open_where_they_can():
    model, x = Net(lambda s, x: F.relu(plain(s, x)).view(x.shape[0], -1)).eval(), torch.randn(2, 4, 3, 3)
    fused = fuse(model, x)
    other = torch.randn(5, 4, 7, 7)
    assert not fused.report.sizes and close(fused(other), model(other))


def test_one_dimension_keeps_the_check_of_its_rank():
    model = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4))
    net = prepared(Net(lambda s, x: F.relu(s.model(x) + x), model=model)).eval()
    x = torch.randn(2, 4, 9)
    fused = fuse(net, x)
    assert ops_of(fused, x) == ["conv_act"] and close(fused(x), net(x))
    assert any(type(m) is ConvAct1d for m in fused.modules())
    with pytest.raises(ValueError, match="expected 3D input"):
        fused(x[0])


def test_wrong_answers_are_an_error(monkeypatch):
    monkeypatch.setattr(convnorm._folding.rules, "folded", lambda *a: tuple(1.01 * t for t in folded(*a)))
    model, x = prepared(Net(lambda s, x: F.relu(plain(s, x)))).eval(), torch.randn(2, 4, 5, 5)
    with pytest.raises(RuntimeError, match=r"fuse: the outputs on the sample differ by .*, more than the"):
        fuse(model, x)


folded = convnorm._folding.rules.folded


@pytest.mark.parametrize(
    "model, sample, kind, words",
    [
        (Net(plain).train(), None, RuntimeError, "fuse: the model is in training mode"),
        (Net(plain).eval(), {"x": [torch.ones(1)]}, ValueError, "must be tensors or plain values, one is a list"),
        (Net(lambda s, x: x if x.sum() > 0 else -x).eval(), torch.ones(1, 4, 3, 3), RuntimeError, "cannot trace"),
    ],
    ids=["training", "nested", "values"],
)
def test_errors(model, sample, kind, words):
    with pytest.raises(kind, match=words):
        fuse(model, sample)
    with pytest.raises(ValueError, match=r"fuse: exclude \['head'\] matches no module"):
        fuse(Net(plain).eval(), exclude="head")


def test_the_graph_is_a_module_like_any_other():
    make, size = MODELS["resnet18"]
    model, x = prepared(make()).eval(), torch.randn(size)
    fused = fuse(model, x)
    with torch.no_grad():
        expected = fused(x)
        assert_same(copy.deepcopy(fused)(x), expected)
        assert_same(pickle.loads(pickle.dumps(fused))(x), expected)
        assert_same(torch.compile(fused, backend="aot_eager", fullgraph=True)(x), expected)
        program = torch.export.export(fused, (x,))
        assert_same(program.module()(x), expected)
    called = [str(n.target) for n in program.graph.nodes if "convnorm.conv" in str(n.target)]
    assert called.count("convnorm.conv_act.default") == 17 and "convnorm.batch_norm" not in str(program.graph)
    assert sum(isinstance(m, ConvAct2d) for m in fused.modules()) == 17


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    make, size = MODELS["resnet18"]
    model, x = prepared(make()).eval().to(dtype), torch.randn(size, dtype=dtype)
    report = fuse(model, x).report
    assert report.error <= report.bound
