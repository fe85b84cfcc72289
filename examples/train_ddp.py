"""LeNet-5 on the digits, trained by several processes that see one batch: the same loss curve for any number of them.

    torchrun --nproc-per-node 2 --max-restarts 3 examples/train_ddp.py

Every batch is the same images in the same order however many processes share it; SyncBatchNorm takes statistics over
all of it, and the loss is divided by its size. After each epoch the state is written to --checkpoint, and a run that
finds one goes on from there: after a crash, a kill, or with another number of processes. To start anew, remove it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: imported later (DDP does), it would hold the group for good
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import convnorm
from convnorm._console import Out
from convnorm.data import digits_split
from convnorm.models import LeNet5


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training set (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step, of all processes (%(default)s)")
    parser.add_argument("--lr", type=float, default=0.02, help="first learning rate, then cosine (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="start weights and order (%(default)s)")
    parser.add_argument("--limit", type=int, help="use only so many of the 5,000 images")
    parser.add_argument("--double", action="store_true", help="float64: loss curves agree to 12 digits")
    parser.add_argument("--checkpoint", type=Path, default=Path("demo_output/train_ddp.pt"), help="(%(default)s)")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("run it by torchrun: torchrun --nproc-per-node 2 examples/train_ddp.py")
    return options


class Trainer:
    """The network, its optimizer and its history, in one of several processes."""

    def __init__(self, options: argparse.Namespace, out: Out) -> None:
        self.options, self.out = options, out
        self.rank, self.processes = dist.get_rank(), dist.get_world_size()
        self.dtype = torch.float64 if options.double else torch.float32
        self.data = digits_split(limit=options.limit)
        torch.manual_seed(options.seed)
        net = convnorm.nn.SyncBatchNorm.convert_sync_batchnorm(LeNet5(convnorm.nn)).to(self.dtype)
        self.net = DistributedDataParallel(net)
        steps = -(-len(self.data.train_labels) // options.batch_size)
        self.optimizer = torch.optim.SGD(net.parameters(), options.lr, 0.9, weight_decay=5e-3, nesterov=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, options.epochs * steps)
        self.history: list[dict[str, float]] = []  # one entry for each completed epoch
        self.parts = {"net": net, "optimizer": self.optimizer, "schedule": self.schedule}

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, int]]:
        """The images of this process in each batch, and how many the whole batch has."""
        generator = torch.Generator().manual_seed(1000 * self.options.seed + epoch)
        order = torch.randperm(len(self.data.train_labels), generator=generator)
        for batch in order.split(self.options.batch_size):
            yield batch.tensor_split(self.processes)[self.rank], len(batch)

    def epoch(self) -> None:
        """Train on all images, measure, and keep the result."""
        self.net.train()
        number, start, loss_sum = len(self.history) + 1, time.perf_counter(), torch.zeros((), dtype=torch.float64)
        with self.out.progress(-(-len(self.data.train_labels) // self.options.batch_size)) as step:
            for mine, size in self.batches(number):
                images, labels = self.data.train_images[mine].to(self.dtype), self.data.train_labels[mine]
                loss = F.cross_entropy(self.net(images), labels, reduction="sum")
                self.optimizer.zero_grad()
                (loss * (self.processes / size)).backward()  # DDP divides by the number of processes
                self.optimizer.step()
                self.schedule.step()
                loss_sum += loss.detach()
                step(f"epoch {number}")
        sums = torch.stack((loss_sum, self.correct().double()))
        dist.all_reduce(sums)
        loss_mean, accuracy = (sums / torch.tensor([len(self.data.train_labels), len(self.data.test_labels)])).tolist()
        self.history.append({"loss": loss_mean, "accuracy": accuracy, "seconds": time.perf_counter() - start})

    def correct(self) -> Tensor:
        """How many of this process's share of the test images are classified correctly."""
        self.net.eval()
        images = self.data.test_images.tensor_split(self.processes)[self.rank].to(self.dtype)
        labels = self.data.test_labels.tensor_split(self.processes)[self.rank]
        with torch.inference_mode():
            guesses = torch.cat([self.net.module(part).argmax(1) for part in images.split(250)])
        return (guesses == labels).sum()

    def save(self) -> None:
        """Replace the checkpoint in one step: a process killed at any moment leaves the old one or the new one."""
        if self.rank:
            return
        path = self.options.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            torch.save(state | {"history": self.history, "settings": self.settings()}, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def load(self) -> bool:
        """Go on from the checkpoint, which one process reads for all; False where there is none."""
        path = self.options.checkpoint
        box: list[Any] = [torch.load(path) if self.rank == 0 and path.exists() else None]
        dist.broadcast_object_list(box)
        state = box[0]
        if state is None:
            return False
        if state["settings"] != self.settings():
            raise SystemExit(f"{path} is of {state['settings']}, not {self.settings()}: remove it to start anew")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.history = state["history"]
        return True

    def settings(self) -> dict[str, Any]:
        """What decides the loss curve. The number of processes does not."""
        return {name: value for name, value in vars(self.options).items() if name != "checkpoint"}


def train(options: argparse.Namespace) -> None:
    """All epochs that are not done yet."""
    first = dist.get_rank() == 0
    out = Out(plain=not first)
    tell = out.print if first else lambda text: None
    trainer = Trainer(options, out)
    ids: list[Any] = [None] * trainer.processes
    dist.all_gather_object(ids, os.getpid())
    tell(f"processes {' '.join(map(str, ids))}")
    if trainer.load():
        tell(f"goes on after epoch {len(trainer.history)} of {options.checkpoint}")
    while len(trainer.history) < options.epochs:
        trainer.epoch()
        trainer.save()
        last = trainer.history[-1]
        tell(f"epoch {len(trainer.history)} of {options.epochs}  loss {last['loss']:.6f}  accuracy "
             f"{last['accuracy']:.1%}  {last['seconds']:.1f} s")


def join() -> None:
    """init_process_group, with a part of torchrun's store that is new after a restart.

    torchrun (2.13) keeps its store, and a new process could find the address of a dead one in it and wait for that.
    Machines count their restarts each for itself, so for several of them docs/distributed.md has another way.
    """
    store, rank, processes = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)


def main() -> None:
    options = arguments()
    join()
    train(options)
    # DDP is gone, so the group ends here, with its threads. See docs/distributed.md.
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
