"""Whole networks under `convert`: torch's answers, layer by layer and as a whole, and the same state_dict."""

import pytest
import torch

from convnorm import nn as convnorm_nn
from convnorm.models import LeNet5, MobileNetV2, UNet, resnet18, resnet50, vgg_bn
from tests import networks

MODELS = {
    "lenet": (lambda: LeNet5(), (4, 1, 28, 28)),
    "resnet18": (lambda: resnet18(5, width=4), (4, 3, 64, 64)),
    "resnet50": (lambda: resnet50(5, width=4), (4, 3, 64, 64)),
    "vgg11": (lambda: vgg_bn(11, 5, width=2), (4, 3, 32, 32)),
    "mobilenet": (lambda: MobileNetV2(5, width=0.1), (4, 3, 64, 64)),
    "unet": (lambda: UNet(2, width=4, depth=2), (2, 1, 16, 24)),
}


@pytest.fixture(params=MODELS)
def network(request):
    make, size = MODELS[request.param]
    return networks.prepared(make()), torch.randn(size)


@pytest.mark.parametrize("check", [networks.check_layers, networks.check_evaluation, networks.check_training])
def test_answers(network, check):
    check(*network)


def test_conversion_and_state_dict(network):
    networks.check_conversion(network[0])
    networks.check_state_dict(network[0])


@pytest.mark.parametrize(
    "make, count",
    [(resnet18, 11689512), (resnet50, 25557032), (lambda: vgg_bn(16), 138365992), (MobileNetV2, 3504872)],
    ids=["resnet18", "resnet50", "vgg16", "mobilenet"],
)
def test_full_size_has_the_published_number_of_parameters(make, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


def test_names_are_torchvisions():
    names = set(resnet50(5, width=4).state_dict())
    assert {"conv1.weight", "layer1.0.downsample.1.running_var", "layer4.2.bn3.bias", "fc.bias"} <= names
    assert {"features.0.weight", "features.1.running_mean", "classifier.6.bias"} <= set(vgg_bn(11, 5, 2).state_dict())
    names = set(MobileNetV2(5, 0.1).state_dict())
    assert {"features.0.0.weight", "features.1.conv.1.weight", "features.17.conv.3.bias", "classifier.1.bias"} <= names


def test_bad_depth():
    with pytest.raises(ValueError, match=r"vgg_bn: depth 12 must be one of \(11, 13, 16, 19\)"):
        vgg_bn(12)


def test_lenet_of_convnorm_has_the_same_answers():
    theirs, ours = networks.prepared(LeNet5()), LeNet5(convnorm_nn)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(ours.double()(x), theirs.double()(x))
