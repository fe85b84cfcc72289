"""Who can race beside torch's eager mode: torch.compile, ONNX Runtime and OpenVINO. Forward passes only.

ONNX Runtime and OpenVINO load the graph that ``torch.onnx.export`` writes and pack its weights once, when they load it;
what is timed is their run alone. ONNX has one order of dimensions, so of the two OpenVINO alone takes channels_last
tensors, by its own conversion of inputs and outputs. Only torch.compile records for a backward where the row does.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .problem import Forward

Player = Callable[[], Any]
EXTRA = "pip install convnorm[peers]"
_NEEDS = {"torch.compile": (), "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
          "openvino": ("openvino", "onnx", "onnxscript")}  # fmt: skip
NAMES = tuple(_NEEDS)


class Refused(Exception):
    """A peer cannot compute this; the text is its reason."""


def missing(names: list[str]) -> list[str]:
    """The packages that these peers need and that are not installed."""
    needed = dict.fromkeys(package for name in names for package in _NEEDS[name])
    return [package for package in needed if importlib.util.find_spec(package) is None]


def versions(names: list[str]) -> dict[str, str]:
    """Of each peer the version that races."""
    return {name: importlib.metadata.version(name.partition(".")[0]) for name in names}


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell how to use them better; a failure still raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _compiled(forward: Forward) -> Player:
    torch.compiler.reset()  # graphs of earlier rows count towards the limit of recompilations
    return forward.player(torch.compile(forward.module, dynamic=False, fullgraph=True))


@functools.lru_cache(maxsize=1)  # two peers, one after the other, take the same
def _exported(forward: Forward) -> bytes:
    inputs = tuple(t.contiguous() for t in forward.inputs)
    program = torch.onnx.export(forward.module, inputs, dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def _plain(forward: Forward) -> list[Tensor]:
    """The inputs as tensors that numpy can look into."""
    if forward.trains:
        raise Refused("computes no gradients")
    if any(t.dtype in (torch.bfloat16, torch.float16) for t in forward.inputs):
        raise Refused("raced in 32 and 64 bits only")
    return [t.detach() for t in forward.inputs]


def _by_onnxruntime(forward: Forward) -> Player:
    import onnxruntime

    inputs = _plain(forward)
    if not all(t.is_contiguous() for t in inputs):
        raise Refused("ONNX has no channels_last")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its workers would spin in others' turns
    session = onnxruntime.InferenceSession(_exported(forward), options, ["CPUExecutionProvider"])
    given = {node.name: t.numpy() for node, t in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: tuple(torch.from_numpy(out) for out in session.run(None, given))


def _last(ports: list[Any], step: Callable[[int], Any]) -> None:
    """Tensors of these ports have their channels last, where the model has them second."""
    for i, port in enumerate(ports):
        last = {4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}.get(len(port.shape))
        if last:
            step(i).model().set_layout(last[0])
            step(i).tensor().set_layout(last[1])


def _by_openvino(forward: Forward) -> Player:
    import openvino
    from openvino.preprocess import PrePostProcessor

    inputs, core = _plain(forward), openvino.Core()
    model = core.read_model(io.BytesIO(_exported(forward)))
    last = not all(t.is_contiguous() for t in inputs)
    if last:
        steps = PrePostProcessor(model)
        _last(model.inputs, steps.input)
        _last(model.outputs, steps.output)
        model, inputs = steps.build(), [t.movedim(1, -1) for t in inputs]
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32"}  # fmt: skip
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    given = [t.numpy() for t in inputs]

    def run() -> tuple[Tensor, ...]:
        found = request.infer(given, share_inputs=True, share_outputs=True)
        outputs = (torch.from_numpy(out) for out in found.values())
        return tuple(out.movedim(-1, 1) if last and out.dim() > 2 else out for out in outputs)

    return run


_MAKERS: dict[str, Callable[[Forward], Player]] = {
    "torch.compile": _compiled, "onnxruntime": _by_onnxruntime, "openvino": _by_openvino}  # fmt: skip


def _first_words(text: str) -> str:
    """The first sentence of an exporter's error, without its colours and its advice."""
    return re.split(r"[.]? This is step|\n", re.sub(r"\x1b\[\d*m", "", text).strip())[0]


def player(name: str, forward: Forward) -> Player:
    """The forward by a peer, loaded, and run once.

    Raises:
        Refused: with the first line of the peer's reason.
    """
    try:
        with _quiet():
            made = _MAKERS[name](forward)
            made()
    except Refused:
        raise
    except Exception as error:  # whatever a peer raises for what it does not have
        raise Refused(f"{type(error).__name__}: {_first_words(str(error))}") from error
    return made
