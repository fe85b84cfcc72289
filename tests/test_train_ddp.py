"""examples/train_ddp.py: one loss curve for any number of processes, and a killed worker costs no completed epoch."""

import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.processes import LIMIT, end, start

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples/train_ddp.py"
EPOCHS = 8
# 24 images: with four processes, one of them has no image of the last batch.
OPTIONS = f"--double --limit 30 --batch-size 7 --epochs {EPOCHS} --checkpoint".split()


def worker(rank, size, port, checkpoint):
    """What torchrun would run, without the seconds that new interpreters take."""
    torch.set_num_threads(1)
    sys.argv = [str(EXAMPLE), *OPTIONS, str(checkpoint)]
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def history(checkpoint):
    return [(epoch["loss"], epoch["accuracy"]) for epoch in torch.load(checkpoint)["history"]]


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Loss and accuracy of each epoch, by the number of processes."""
    folder, stores, groups = tmp_path_factory.mktemp("curves"), [], []
    for size in (1, 2, 4):
        stores.append(dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        port = stores[-1].port
        groups += [start(worker, rank, size, port, folder / f"{size}.pt") for rank in range(size)]
    for process in groups:
        process.join(LIMIT)
    codes = [process.exitcode for process in groups]
    end(groups)
    assert codes == [0] * 7
    return {size: history(folder / f"{size}.pt") for size in (1, 2, 4)}


def test_one_loss_curve_for_1_2_and_4_processes(curves):
    alone = torch.tensor(curves[1], dtype=torch.float64)
    assert alone.shape == (EPOCHS, 2) and alone[-1, 0] < alone[0, 0]
    for size in (2, 4):
        torch.testing.assert_close(torch.tensor(curves[size], dtype=torch.float64), alone)


def torchrun(checkpoint, *, on_line):
    """The example in two processes; on_line sees what it prints. Returns the lines."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts",
               "1", "--monitor-interval", "0.1", str(EXAMPLE), *OPTIONS, str(checkpoint)]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    alarm = threading.Timer(LIMIT, run.terminate)  # torchrun ends its workers then
    alarm.start()
    lines = []
    try:
        for line in run.stdout:
            lines.append(line.strip())
            on_line(lines)
        code = run.wait(LIMIT)
    finally:
        alarm.cancel()
        run.terminate()
    assert code == 0, "\n".join(lines)
    return lines


def numbers(lines, pattern):
    return [int(found[1]) for line in lines if (found := re.match(pattern, line))]


def test_a_killed_worker_costs_no_completed_epoch(curves, tmp_path):
    killed = []

    def kill_once(lines):
        if not killed and lines[-1].startswith("epoch 2 "):
            ids = next(line for line in lines if line.startswith("processes ")).split()[1:]
            os.kill(int(ids[1]), signal.SIGKILL)
            killed.append(int(ids[1]))

    lines = torchrun(tmp_path / "checkpoint.pt", on_line=kill_once)
    assert len(numbers(lines, r"processes (\d+)")) == 2 and killed  # two starts
    (resumed,) = numbers(lines, r"goes on after epoch (\d+)")
    assert 2 <= resumed < EPOCHS
    epochs = numbers(lines, r"epoch (\d+) of")
    assert epochs[-1] == EPOCHS and len(set(epochs)) == len(epochs)
    assert set(range(1, EPOCHS + 1)) - set(epochs) <= {resumed}  # saved, and killed before it was printed
    assert history(tmp_path / "checkpoint.pt") == curves[2]  # to the bit
