"""Exported to ONNX and run by onnxruntime, everything computes what it computes in eager mode."""

import sys

import pytest
import torch
import torch.nn.functional as F

import convnorm
import convnorm.functional as CF
from convnorm.testing import assert_accurate, assert_same
from tests.specs import all_specs, cast, outputs_of
from tests.test_machinery import Network


def export(module, *inputs, **options):
    """A session of onnxruntime that runs the module, and the kinds of nodes in its graph."""
    import onnxruntime

    table = convnorm.onnx.translation_table()
    program = torch.onnx.export(module, inputs, dynamo=True, custom_translation_table=table, verbose=False, **options)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())

    def run(*tensors):
        feeds = {i.name: t.numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)}
        return [torch.from_numpy(o) for o in session.run(None, feeds)]

    return run, {node.op_type for node in program.model.graph}


def problems():
    """(what it is, our function, torch's, the inputs): small cases of all specs, and some of what they leave out."""
    for spec in all_specs():
        for case in spec.cases:
            if case.small and not ("running_mean" in case.shapes and case.kwargs.get("training")):
                yield f"{spec}-{case}", spec.ours, spec.theirs, spec.inputs(case, torch.float32)
    x = torch.randn(2, 4, 9, 12)
    for name, keywords in {
        "max_pool2d": {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "return_indices": True},
        "adaptive_max_pool2d": {"output_size": 3, "return_indices": True},
        "avg_pool2d": {"kernel_size": 4, "stride": 3, "padding": 1, "ceil_mode": True, "divisor_override": 5},
        "adaptive_avg_pool2d": {"output_size": 3},
    }.items():
        yield f"{name}-{keywords}", getattr(CF, name), getattr(F, name), {"input": x} | keywords
    fused = {"input": x, "weight": torch.randn(4, 4, 3, 3), "padding": 1}
    yield "conv2d_act", CF.conv2d_act, lambda **given: F.conv2d(**given).relu(), fused
    summed = lambda residual, **given: (F.conv2d(**given) + residual).relu()  # noqa: E731
    yield "conv2d_act with a residual", CF.conv2d_act, summed, fused | {"residual": torch.randn(2, 4, 9, 12)}
    transposed = {"input": x, "weight": torch.randn(4, 3, 3, 2), "stride": 2, "padding": 1, "output_padding": 1}
    yield "conv_transpose2d", CF.conv_transpose2d, F.conv_transpose2d, transposed | {"groups": 2, "dilation": (1, 2)}


class Problems(torch.nn.Module):
    """All problems in one module: an export costs a second, whatever its size."""

    def __init__(self, functions, plain):
        super().__init__()
        self.functions, self.plain = functions, plain

    def forward(self, tensors):
        triples = zip(self.functions, self.plain, tensors, strict=True)
        return [list(outputs_of(function(**(plain | given)))) for function, plain, given in triples]


def test_every_op():
    names, functions, references, inputs = zip(*problems(), strict=True)
    tensors = [{k: v for k, v in given.items() if isinstance(v, torch.Tensor)} for given in inputs]
    plain = [{k: v for k, v in given.items() if k not in t} for given, t in zip(inputs, tensors, strict=True)]
    run, kinds = export(Problems(functions, plain), tensors)
    found = iter(run(*(t for given in tensors for t in given.values())))
    for name, ours, theirs, given in zip(names, functions, references, inputs, strict=True):
        exact = outputs_of(theirs(**cast(given, torch.float64)))
        for i, eager in enumerate(outputs_of(ours(**given))):
            assert_accurate(next(found), eager, exact[i], f"{name}, output {i}")
    assert kinds >= {
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "BatchNormalization",
        "LayerNormalization",
        "InstanceNormalization",
        "ScatterElements",
    }


def test_a_network_with_dynamic_sizes():
    net = Network().eval()
    net.highest = convnorm.nn.AdaptiveMaxPool2d(1)  # a size other than 1 has to be known at export
    half = {d: torch.export.Dim(d, min=3, max=64) for d in "hw"}
    sizes = {0: torch.export.Dim("n", min=1, max=64), 2: 2 * half["h"], 3: 2 * half["w"]}
    run, _ = export(net, torch.randn(2, 3, 16, 12), dynamic_shapes=(sizes,))
    exact = Network(torch.nn).double().eval()
    exact.highest = torch.nn.AdaptiveMaxPool2d(1)
    exact.load_state_dict(net.state_dict())
    for x in (torch.randn(2, 3, 16, 12), torch.randn(5, 3, 10, 20)):
        assert_accurate(run(x)[0], net(x).detach(), exact(x.double()).detach())


def causes(error):
    while error is not None:
        yield str(error)
        error = error.__cause__


@pytest.mark.parametrize(
    "layer, message",
    [
        (convnorm.nn.AdaptiveAvgPool2d(3), "adaptive_avg_pool: input sizes must be known at export, not dynamic"),
        (convnorm.nn.AdaptiveMaxPool2d(5, return_indices=True), "indices need output_size [5, 5] to divide [8, 8]"),
    ],
    ids=["dynamic", "indices"],
)
def test_what_onnx_cannot_say_is_an_error_with_the_reason(layer, message):
    sizes = None if "indices" in message else ({2: torch.export.Dim("h", min=3, max=64)},)
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as raised:
        export(layer, torch.randn(1, 2, 8, 8), dynamic_shapes=sizes)
    assert any(message in text for text in causes(raised.value))


def test_without_onnxscript_the_error_says_what_to_install(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("convnorm.onnx.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(convnorm.onnx, name.rpartition(".")[2])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="needs the package 'onnxscript': pip install onnx onnxscript"):
        convnorm.onnx.translation_table()


def test_offsets_for_the_backward_are_not_exported():
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    program = torch.export.export(convnorm.nn.MaxPool2d(2), (x,))
    (call,) = [n for n in program.graph.nodes if n.target is torch.ops.convnorm.max_pool_forward.default]
    assert call.args[-1] == convnorm.ops.max_pool.NOTHING
    assert_same(program.module()(x), CF.max_pool2d(x, 2))
