"""Models as libraries publish them, with random weights: convert, train, fold. `make test-models` installs them."""

import copy

import pytest
import torch
from torch import nn

from convnorm import convert, fold
from tests import networks


def transformers_model(kind, **config):
    transformers = pytest.importorskip("transformers", reason="make test-models installs it")
    made = getattr(transformers, f"{kind}Config")(**config)
    return getattr(transformers, f"{kind}Model")(made)


def monai_model(kind, *args, **kwargs):
    nets = pytest.importorskip("monai.networks.nets", reason="make test-models installs it")
    return getattr(nets, kind)(*args, **kwargs)


def autoencoder():
    diffusers = pytest.importorskip("diffusers", reason="make test-models installs it")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks)


def resnet(layer):
    return transformers_model("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type=layer)


IMAGE, VOLUME = (4, 3, 32, 32), (2, 1, 16, 16, 16)
MODELS = {  # name: (model, size of its input, how many batch norms fold, how many stay)
    "transformers-resnet-basic": (lambda: resnet("basic"), IMAGE, 8, 0),
    "transformers-resnet-bottleneck": (lambda: resnet("bottleneck"), IMAGE, 11, 0),
    "transformers-regnet": (
        lambda: transformers_model("RegNet", embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], groups_width=4),
        IMAGE, 9, 0),
    "transformers-efficientnet": (  # its depthwise convolutions are a subclass: fold takes them, convert leaves them
        lambda: transformers_model("EfficientNet", width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320),
        IMAGE, 25, 0),
    "monai-unet-instance-norm": (
        lambda: monai_model("UNet", 3, 1, 2, (4, 8, 16), (2, 2), num_res_units=1), VOLUME, 0, 0),
    "monai-unet-batch-norm": (
        lambda: monai_model("UNet", 3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2, norm="batch"), VOLUME, 9, 0),
    "monai-basic-unet": (
        lambda: monai_model("BasicUNet", 3, 1, 2, (4, 4, 8, 8, 8, 4), norm="batch"), VOLUME, 18, 0),
    "monai-densenet": (  # norm before convolution: only those that follow a convolution fold
        lambda: monai_model("DenseNet", 3, 1, 2, init_features=4, growth_rate=4, block_config=(2, 2)), VOLUME, 5, 6),
    "diffusers-vae": (autoencoder, (2, 3, 16, 16), 0, 0),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def published(request):
    make, size, folds, stays = MODELS[request.param]
    torch.manual_seed(0)
    return networks.prepared(make()), torch.randn(size), folds, stays


@pytest.mark.parametrize("check", [networks.check_layers, networks.check_evaluation, networks.check_training])
def test_answers(published, check):
    model, x, *_ = published
    check(model, x)


def test_conversion_and_state_dict(published):
    networks.check_conversion(published[0])
    networks.check_state_dict(published[0])


@pytest.mark.parametrize("ours", [False, True], ids=["torch", "convnorm"])
def test_fold(published, ours):
    model, x, folds, stays = published
    model = (convert(model) if ours else model).eval()
    before = networks.outputs_of(model, (x,))
    report = fold(model, x)
    assert (len(report.folded), len(report.entries)) == (folds, folds + stays)
    assert sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()) == stays
    for a, b in zip(networks.outputs_of(model, (x,)), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()
