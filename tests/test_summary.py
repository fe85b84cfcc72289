"""The layer table: LeNet-5 as the course prints it, its worked numbers, and receptive fields."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convnorm
from convnorm.analysis import summary
from convnorm.analysis.summary import HEADINGS
from convnorm.models import LeNet5

COURSE = [  # layer, output size, weight size
    ("input", "1 x 28 x 28", ""),
    ("conv1", "20 x 28 x 28", "20 x 1 x 5 x 5"),
    ("relu1", "20 x 28 x 28", ""),
    ("pool1", "20 x 14 x 14", ""),
    ("conv2", "50 x 14 x 14", "50 x 20 x 5 x 5"),
    ("relu2", "50 x 14 x 14", ""),
    ("pool2", "50 x 7 x 7", ""),
    ("flatten", "2450", ""),
    ("fc1", "500", "2450 x 500"),
    ("relu3", "500", ""),
    ("fc2", "10", "500 x 10"),
]


@pytest.mark.parametrize("layers", [nn, convnorm.nn], ids=["torch", "convnorm"])
def test_lenet_as_the_course_prints_it(layers):
    table = summary(LeNet5(layers, norm=False), (1, 28, 28))
    cells = [row.cells() for row in table.rows]
    assert [(name, output, weight) for name, _, output, weight, *_ in cells] == COURSE
    assert table.parameters == 520 + 25_050 + 1_225_500 + 5_010
    assert table.macs == 392_000 + 4_900_000 + 1_225_000 + 5_000


def test_worked_example():
    table = summary(nn.Conv2d(3, 10, 5, padding=2), (3, 32, 32))
    row = table.rows[1]
    assert row.output_size == (10, 32, 32) and row.parameters == 760 and row.macs == 768_000
    assert row.bytes == 4 * (3 * 32 * 32 + 10 * 32 * 32 + 760)
    assert summary(nn.Conv2d(3, 6, 5), (3, 32, 32)).rows[1].output_size == (6, 28, 28)


@pytest.mark.parametrize("kernel, layers", [(3, 1), (3, 4), (5, 3), (7, 2)])
def test_receptive_field_of_stacked_convolutions(kernel, layers):
    net = nn.Sequential(*(nn.Conv2d(2, 2, kernel, padding=kernel // 2) for _ in range(layers)))
    last = summary(net, (2, 40, 40)).rows[-1]
    assert last.field.field == (1 + layers * (kernel - 1),) * 2
    assert last.previous == (kernel, kernel)


def test_500_layers_see_1000_pixels():
    net = nn.Sequential(*(nn.Conv1d(1, 1, 3, padding=1) for _ in range(500)))
    fields = [row.field.field[0] for row in summary(net, (1, 1000)).rows]
    assert fields[499] == 999 and fields[500] == 1001


def test_strides_and_dilation_multiply():
    net = nn.Sequential(nn.Conv2d(1, 1, (3, 5), stride=2), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, dilation=2))
    rows = summary(net, (1, 64, 64)).rows
    assert [row.field.jump for row in rows] == [(1, 1), (2, 2), (4, 4), (4, 4)]
    assert [row.field.field for row in rows] == [(1, 1), (3, 5), (5, 7), (21, 23)]
    assert rows[3].previous == (5, 5)


def test_receptive_field_is_what_gradients_reach():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.AvgPool2d(3, 2), nn.Conv2d(2, 1, 3)).double()
    for p in net.parameters():
        nn.init.ones_(p)
    x = torch.zeros(1, 1, 63, 63, dtype=torch.float64, requires_grad=True)
    out = net(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    reached = x.grad[0, 0].nonzero()
    extent = tuple((reached.max(0).values - reached.min(0).values + 1).tolist())
    assert extent == summary(net, (1, 63, 63)).rows[-1].field.field


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.norm(self.body(x))
        x = self.body(x)  # used twice
        return self.head(self.pool(x).flatten(1))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_branches_functionals_and_shared_layers(device):
    table = summary(Residual(), (3, 32, 32), device=device)
    fields = {(i, row.name): row.field.field[0] for i, row in enumerate(table.rows)}
    assert fields == {(0, "input"): 1, (1, "stem"): 3, (2, "body"): 7, (3, "norm"): 7, (4, "body"): 11,
                      (5, "pool"): 32, (6, "head"): 32}  # fmt: skip
    assert [row.parameters for row in table.rows] == [0, 224, 584, 16, 0, 0, 18]
    assert table.parameters == sum(row.parameters for row in table.rows)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train()
    model[1].eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    summary(model, (1, 8, 8))
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not model[0]._forward_hooks


def test_transposed_convolution_has_no_receptive_field_here():
    row = summary(nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 5, 5)).rows[1]
    assert row.field is None and row.macs == 2 * 25 * 27 and "-" in row.cells()


def test_two_inputs_and_bad_sizes():
    class Add(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, a, b):
            return self.act(a + b)

    assert summary(Add(), [(3, 4, 4), (3, 4, 4)]).rows[1].output_size == (3, 4, 4)
    with pytest.raises(ValueError, match="must have sizes of at least 1"):
        summary(nn.ReLU(), (3, 0, 4))


class Own(nn.Module):
    """Parameters of its own, layers inside, and work that no layer does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())

    def forward(self, x):
        return self.inner(F.conv2d(x, self.weight, stride=2))


def test_multiply_adds_and_fields_of_functional_calls():
    table = summary(nn.Sequential(Own(), nn.BatchNorm2d(4)), (3, 17, 17))
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["input", "0.inner.0", "0.inner.1", "0", "1"], "a container with parameters has a row"
    assert rows["0"].macs == 64 * 4 * 27 and rows["0.inner.0"].macs == 36 * 4 * 36
    assert rows["0"].parameters == 4 * 27 and table.parameters == sum(row.parameters for row in table.rows)
    assert rows["0.inner.0"].field.field == (7, 7) and rows["1"].field.jump == (2, 2)
    assert rows["0"].previous == (7, 7)
    outside = summary(Residual(), (3, 32, 32))
    assert outside.outside == 0 and outside.macs == sum(row.macs for row in outside.rows)

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(x) @ x

    between = summary(Between(), (5, 5))
    assert between.outside == between.macs == 125 and "125 of them outside of the rows" in between.totals()


def test_attention_and_recurrence_count_as_one_layer():
    rows = summary(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (10, 16)).rows
    attention = next(row for row in rows if row.kind == "MultiheadAttention")
    assert attention.parameters == 4 * (16 * 16 + 16) and attention.field is None
    assert attention.macs == 4 * 10 * 16 * 16 + 2 * 10 * 10 * 16
    lstm = summary(nn.LSTM(8, 16, batch_first=True), (10, 8)).rows[1]
    assert lstm.macs == 10 * 4 * 16 * (8 + 16) and lstm.output_size == (10, 16)


def test_a_parametrized_layer_is_one_layer():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    row = summary(nn.Sequential(layer), (3, 8, 8)).rows[1]
    assert row.kind == "ParametrizedConv2d" and row.macs == 36 * 4 * 27 and row.field.field == (3, 3)
    assert row.parameters == 4 * 27 + 4 + 4


def test_text_and_rich_tables():
    table = summary(LeNet5(), (1, 28, 28))
    lines = str(table).splitlines()
    assert lines[0].split() == " ".join(HEADINGS).split()
    assert lines[-1].startswith("1,256,220 parameters, 6,522,000 multiply-adds")
    assert len(table.rich().columns) == 10 and len(table.rich(narrow=True).columns) == 8
