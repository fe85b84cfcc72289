"""Batch norm over the batches of all processes."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from .. import functional as CF
from ..distributed import sync_batch_norm
from .conv_act import check_act
from .fused import _BatchNormAct
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _batch_norm
from .norm_pooling import _BatchNormActMaxPool

_KNOWN = (_BatchNorm, nn.SyncBatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNormAct, _BatchNormActMaxPool)


class SyncBatchNorm(_BatchNorm):
    """Batch norm as if the batches of all processes were one, by :func:`convnorm.distributed.sync_batch_norm`.

    Like :class:`torch.nn.SyncBatchNorm`, with the same state_dict, and also for CPU tensors, ``torch.compile``, empty
    batches and a ReLU in the same pass. It is no subclass of torch's, because DistributedDataParallel refuses every
    instance of that on the CPU. In evaluation and in one process it is ``BatchNorm1d``, ``2d`` or ``3d``.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as :class:`torch.nn.BatchNorm2d`.
        process_group: whose batches are one; None is the default group.
        act: ``"relu"`` or None.

    Shape: input, residual and output ``(N, C, ...)`` with 2 to 5 dimensions.

    Example:
        >>> model = convnorm.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        >>> model = torch.nn.parallel.DistributedDataParallel(model)
    """

    process_group: Any = None
    act: str | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        act: str | None = None,
        **factory: Any,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **factory)
        check_act(self, act)
        self.process_group, self.act = process_group, act

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """``act(batch_norm(input) + residual)``; every process of the group must call it in training."""
        # As in torch, evaluation never waits for others, with or without running statistics.
        together = partial(sync_batch_norm, process_group=self.process_group)
        out = _batch_norm(self, input, self.act, residual, together if self.training else CF.batch_norm_act)
        pool = self._modules.get("pool")  # of a BatchNormActMaxPool
        return out if pool is None else pool(out)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", act={self.act!r}" if self.act else "")

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Make every batch norm in ``module`` a :class:`SyncBatchNorm`, in place; returns ``module``.

        Takes torch's and convnorm's batch norms of 1, 2 and 3 dimensions, ``BatchNormAct`` (which keeps its
        activation), ``BatchNormActMaxPool`` (which pools after it) and torch's ``SyncBatchNorm``. Parameters, buffers,
        hooks and optimizers stay as they are.

        Raises:
            TypeError: a batch norm with a forward of its own, which would be lost; nothing is converted then.

        Example:
            >>> model = convnorm.nn.SyncBatchNorm.convert_sync_batchnorm(convnorm.convert(model))
        """
        found = {name: m for name, m in module.named_modules() if isinstance(m, _BatchNorm)}
        for name, m in found.items():
            if reason := _obstacle(m):
                raise TypeError(f"convert_sync_batchnorm: {name or 'the module'} ({type(m).__name__}) {reason}")
        for m in found.values():
            pool = m.pool() if isinstance(m, _BatchNormActMaxPool) else None
            m.__class__ = cls
            m.process_group = process_group
            if pool is not None:
                m.pool = pool
        return module


def _obstacle(m: nn.Module) -> str:
    if isinstance(m, LazyModuleMixin):
        return "is lazy: convert after its first forward"
    if isinstance(m, SyncBatchNorm) or ("forward" not in vars(m) and type(m).forward in [k.forward for k in _KNOWN]):
        return ""
    return "has a forward of its own, which SyncBatchNorm would replace: convert that layer by hand"
