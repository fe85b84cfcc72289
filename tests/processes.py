"""A group of several processes that run functions by name, each with a time limit: gloo, or nccl with a GPU each."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait

import torch
import torch.distributed as dist

LIMIT = 120  # seconds for one call

# A server that has imported everything forks the processes: that costs milliseconds, a new interpreter seconds.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.distributed_checks"])


def _serve(rank, size, backend, store, pipe):
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    limit = timedelta(seconds=LIMIT)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=size, timeout=limit)
    while (call := pipe.recv()) is not None:
        function, arguments = call
        try:
            torch.manual_seed(0)
            function(*arguments)
            pipe.send("")
        except BaseException:
            pipe.send(f"process {rank}:\n{traceback.format_exc()}")
    dist.destroy_process_group()


def start(target, *arguments):
    """A process that dies with this one."""
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def end(processes):
    """Give them a moment, then kill them."""
    deadline = time.monotonic() + 5
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


class Group:
    """``run`` calls a function in every process; a failure or the time limit ends them, and the next call starts new
    ones."""

    def __init__(self, size, folder, backend="gloo"):
        self.size, self.folder, self.backend, self.generation = size, folder, backend, 0
        self.processes, self.pipes = [], []

    def _start(self):
        self.generation += 1
        ends = [context.Pipe() for _ in range(self.size)]
        self.pipes = [ours for ours, _ in ends]
        store = self.folder / f"store{self.generation}"
        common = self.size, self.backend, store
        self.processes = [start(_serve, rank, *common, theirs) for rank, (_, theirs) in enumerate(ends)]
        for _, theirs in ends:
            theirs.close()

    def run(self, function, *arguments):
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, arguments))
        waiting, deadline = set(self.pipes), time.monotonic() + LIMIT
        while waiting:
            ready = wait(waiting, max(0, deadline - time.monotonic()))
            problem = "" if ready else f"{function.__name__} took more than {LIMIT} s"
            for pipe in ready:
                problem = problem or _answer(pipe)
            if problem:
                self.close(kill=True)
                raise AssertionError(problem)
            waiting -= set(ready)

    def close(self, kill=False):
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            if kill:
                process.kill()
            elif process.is_alive():
                pipe.send(None)
        end(self.processes)
        self.processes, self.pipes = [], []


def _answer(pipe):
    try:
        return pipe.recv()
    except EOFError:
        return "a process ended without an answer"
