"""convert and revert: exact types, in place, and a reason for everything that stays."""

import copy

import pytest
import torch
from torch import nn

import convnorm
from convnorm import conversion_report, convert, revert
from convnorm.convert import pairs


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)), nn.Flatten(), nn.Linear(4 * 64, 5),
    )  # fmt: skip


def statuses(model, **selection):
    return {e.name: (e.status, e.reason) for e in conversion_report(model, **selection).entries}


def test_every_layer_of_a_network_and_back():
    model = network()
    before = {name: type(m) for name, m in model.named_modules()}
    assert convert(model) is model
    assert [type(m) for m in (model[0], model[1], model[3], model[4][0])] == [
        convnorm.nn.Conv2d, convnorm.nn.BatchNorm2d, convnorm.nn.MaxPool2d, convnorm.nn.Conv2d,
    ]  # fmt: skip
    assert type(model[6]) is nn.Linear
    assert revert(model) is model
    assert {name: type(m) for name, m in model.named_modules()} == before


def test_converted_network_gives_the_same_answers_and_gradients():
    model, x = network().double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    other = convert(copy.deepcopy(model))
    for net in (model, other):
        net(x).square().sum().backward()
    torch.testing.assert_close(other(x), model(x))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)
    torch.testing.assert_close(other[1].running_var, model[1].running_var)


def test_parameters_hooks_and_optimizer_stay():
    model, seen = network(), []
    weight = model[0].weight
    model[0].register_forward_hook(lambda *_: seen.append(1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    convert(model)
    assert model[0].weight is weight is optimizer.param_groups[0]["params"][0]
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    before = weight.clone()
    optimizer.step()
    assert seen == [1] and not torch.equal(weight, before)


def test_state_dict_is_the_same():
    a, b = network(), convert(network())
    assert list(a.state_dict()) == list(b.state_dict())
    b.load_state_dict(a.state_dict())


def test_the_root_may_be_a_layer():
    layer = nn.Conv1d(2, 3, 3)
    assert type(convert(layer)) is convnorm.nn.Conv1d
    assert type(revert(layer)) is nn.Conv1d


def test_shared_layers_stay_shared():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.ModuleDict({"a": shared, "b": shared})
    convert(model, exclude="b")
    assert type(model["a"]) is nn.Conv2d, "excluded under one of its names"
    convert(model)
    assert model["a"] is model["b"] and type(shared) is convnorm.nn.Conv2d


@pytest.mark.parametrize(
    "exclude, stay",
    [
        ("0", {"0"}),
        ("4", {"4.0", "4.1"}),
        ("4.*", {"4.0", "4.1"}),
        (["0", "*.1"], {"0", "4.1"}),
        (nn.BatchNorm2d, {"1", "4.1"}),
        (lambda name, m: getattr(m, "kernel_size", None) == (1, 1), {"4.0"}),
        ([nn.MaxPool2d, "0"], {"0", "3"}),
    ],
    ids=["name", "container", "glob", "names", "type", "predicate", "mixed"],
)
def test_exclude(exclude, stay):
    model = network()
    rows = statuses(model, exclude=exclude)
    assert {name for name, (_, reason) in rows.items() if reason == "excluded"} == stay
    convert(model, exclude=exclude)
    assert {name for name, m in model.named_modules() if type(m) in pairs()} == stay


def test_only():
    model = convert(network(), only=[nn.Conv2d, "3"])
    converted = {name for name, m in model.named_modules() if type(m) in pairs().values()}
    assert converted == {"0", "3", "4.0"}
    assert statuses(network(), only=nn.Conv2d)["1"] == ("kept", "not among only")


def test_a_name_that_matches_nothing_is_an_error():
    model = network()
    with pytest.raises(ValueError, match=r"exclude \['head'\] matches no module"):
        convert(model, exclude="head")
    assert type(model[0]) is nn.Conv2d
    with pytest.raises(TypeError, match="only 3 must be a name, a type or a predicate"):
        convert(model, only=[3])


class MyConv(nn.Conv2d):
    pass


def replaced_forward():
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda x: x
    return layer


@pytest.mark.parametrize(
    "layer, reason",
    [
        (MyConv(3, 4, 3), "a subclass of torch's Conv2d, which may compute something else"),
        (nn.LazyConv2d(4, 3), "lazy: it becomes Conv2d at its first forward, convert after that"),
        (nn.Conv2d(3, 4, 3, dtype=torch.complex64), "convnorm has no kernels for torch.complex64"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), "a subclass of torch's Conv2d"),
        (replaced_forward(), "its forward was replaced on this instance"),
        (nn.Linear(3, 4), "convnorm has no Linear"),
    ],
    ids=["subclass", "lazy", "complex", "parametrized", "forward", "linear"],
)
def test_what_stays_has_a_reason(layer, reason):
    kind = type(layer)
    model = nn.Sequential(layer)
    status, found = statuses(model)["0"]
    assert status == "kept" and found.startswith(reason)
    convert(model)
    assert type(layer) is kind


def test_a_lazy_layer_converts_once_it_has_its_shape():
    layer = nn.LazyConv2d(4, 3)
    layer(torch.randn(1, 3, 8, 8))
    assert type(convert(layer)) is convnorm.nn.Conv2d


def test_report_before_and_after():
    model = network()
    before = conversion_report(model)
    assert (before.count("convnorm"), before.count("replaceable"), before.count("kept")) == (0, 5, 3)
    assert type(model[0]) is nn.Conv2d, "a report changes nothing"
    after = conversion_report(convert(model))
    assert (after.count("convnorm"), after.count("replaceable")) == (5, 0)
    page = str(after)
    assert "5 layers run convnorm's kernels, 0 could, 3 stay as they are" in page
    assert "convnorm has no Linear" in page and "4.0" in page


def test_pairs_cover_every_export_that_torch_has():
    names = {ours.__name__ for ours in pairs().values()}
    assert {"Conv1d", "Conv2d", "Conv3d"} <= names
    assert all(theirs.__name__ == ours.__name__ for theirs, ours in pairs().items())


def test_layers_that_torch_lacks_survive_revert():
    model = nn.Sequential(convnorm.nn.BatchNormAct2d(4))
    assert statuses(model)["0"][0] == "convnorm"
    assert type(revert(model)[0]) is convnorm.nn.BatchNormAct2d
