"""What a call keeps and takes: bytes saved for the backward, and the peak of a process that does nothing else."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 3  # what the first allocates the others reuse


def saved_for_backward(model: nn.Module, inputs: list[Tensor]) -> int:
    """Bytes that autograd holds after a forward: the storages it saved, without parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # the tensors too: a freed storage's address would be given again

    def note(saved: Tensor) -> Tensor:
        kept.setdefault(saved.untyped_storage().data_ptr(), saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(*inputs)
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return 1024 * int(found[1])


def growth(make: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], threads: int) -> int:
    """Bytes from before the first call of what ``make(*arguments)`` returns to the peak of the calls."""
    torch.set_num_threads(threads)
    call = make(*arguments)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)  # what making it freed would serve the calls unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident("VmRSS")
    for _ in range(STEPS):
        call()
    return _resident("VmHWM") - before


def peak(make: Callable[..., Callable[[], Any]], *arguments: Any) -> int | None:
    """:func:`growth` in a process of its own, with as many threads; None where the system does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        return other.submit(growth, make, arguments, torch.get_num_threads()).result()
