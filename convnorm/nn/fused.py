"""Layers that torch spells as two or three modules, computed in one pass."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .._args import autocast_lower
from ..functional.conv import conv_geometry
from ..ops._conv_norm_act import conv_norm_act
from ..ops._function import recording_eagerly
from ..ops.batch_norm import update_running
from . import norm
from ._hooks import hooked
from .conv import Conv1d, Conv2d, Conv3d
from .conv_act import check_act
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d


class _BatchNormAct:
    """``act(batch_norm(input) + residual)``: mixed into BatchNormNd, whose state_dict it keeps."""

    act: str | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        act: str | None = "relu",
        **factory: Any,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **factory)  # type: ignore[call-arg]
        check_act(self, act)
        self.act = act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return norm._batch_norm(self, input, self.act, residual)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act!r}"  # type: ignore[misc]


class BatchNormAct1d(_BatchNormAct, BatchNorm1d):
    """Batch norm, then ReLU, of ``(N, C)`` or ``(N, C, L)``; see :class:`BatchNormAct2d`."""


class BatchNormAct2d(_BatchNormAct, BatchNorm2d):
    """Batch norm, an optional residual, then ReLU, in one pass; the backward recomputes the mask.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as :class:`torch.nn.BatchNorm2d`.
        act: ``"relu"`` or None.

    Shape: input, residual and output ``(N, C, H, W)``. The state_dict is BatchNorm2d's.

    For several processes use :meth:`convnorm.nn.SyncBatchNorm.convert_sync_batchnorm`: torch's takes this layer for a
    plain batch norm and drops the activation.

    Example:
        >>> layer = convnorm.nn.BatchNormAct2d(64)
        >>> y = layer(x, residual=shortcut)  # relu(batch_norm(x) + shortcut)
    """


class BatchNormAct3d(_BatchNormAct, BatchNorm3d):
    """Batch norm, then ReLU, of ``(N, C, D, H, W)``; see :class:`BatchNormAct2d`."""


class _ConvNormAct(nn.Module):
    """A convolution and a BatchNormAct as submodules; the forward joins them where that saves memory."""

    _parts: ClassVar[tuple[Any, Any]]  # the types of conv and norm
    conv: nn.modules.conv._ConvNd
    norm: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        act: str | None = "relu",
        recompute: bool = True,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        check_act(self, act)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        conv, norm = self._parts
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        self.conv = conv(in_channels, out_channels, *geometry, **factory)
        self.norm = norm(out_channels, eps, momentum, affine, track_running_stats, act=act, **factory)
        self.recompute = recompute

    def extra_repr(self) -> str:
        return "" if self.recompute else "recompute=False"

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if self._can_recompute(input, residual):
            return self._recomputing(input, residual)
        y = self.conv(input)
        return self.norm(y) if residual is None else self.norm(y, residual)

    def _can_recompute(self, input: Tensor, residual: Tensor | None) -> bool:
        """Whether a backward will be recorded, of two layers that are as made here and that nobody watches."""
        conv, bn = self.conv, self.norm
        if not self.recompute or not recording_eagerly() or (type(conv), type(bn)) != self._parts:
            return False
        if any("forward" in vars(m) or hooked(m) for m in (conv, bn)) or nn.modules.module._has_any_global_hook():
            return False
        given = (input, residual, conv.weight, conv.bias, bn.weight, bn.bias)
        tensors = [t for t in given if t is not None]
        if any(type(t) not in (Tensor, nn.Parameter) for t in tensors) or not any(t.requires_grad for t in tensors):
            return False
        batch_statistics = bn.training or bn.running_mean is None
        return batch_statistics and input.dim() == conv.weight.dim() and input.is_floating_point()

    def _recomputing(self, input: Tensor, residual: Tensor | None) -> Tensor:
        conv, bn, edges = self.conv, self.norm, None
        padding: Any = conv.padding
        if conv.padding_mode != "zeros":
            padding, edges = 0, (conv._reversed_padding_repeated_twice, conv.padding_mode)
        geometry = conv_geometry(f"conv{input.dim() - 2}d", conv.kernel_size, conv.stride, padding, conv.dilation)
        lowered: Any = autocast_lower(input.device, input, conv.weight, conv.bias)
        x, weight, bias = lowered
        out, y, stats = conv_norm_act(
            x, weight, bias, bn.weight, bn.bias, residual, (*geometry, conv.groups), edges, bn.eps, bn.act == "relu"
        )
        mean, var, _, momentum = norm.running_statistics(bn)
        if mean is not None:
            update_running(mean, var, stats, y, momentum)
        return out


class ConvNormAct1d(_ConvNormAct):
    """Convolution, batch norm, ReLU of ``(N, C, L)``; see :class:`ConvNormAct2d`."""

    _parts = (Conv1d, BatchNormAct1d)


class ConvNormAct2d(_ConvNormAct):
    """``relu(batch_norm(conv(input)) + residual)``, with half of torch's memory for activations in training.

    torch keeps the convolution's output for batch norm, and the activation for ReLU and for the next convolution. This
    layer keeps the former only: where the activation goes straight into another ``ConvNormAct``, the backward of that
    one computes it anew, with the same bits (one more elementwise pass per layer). With a residual both are kept.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode: as
            :class:`torch.nn.Conv2d`.
        bias: of the convolution; False by default, as batch norm would take it away again.
        eps, momentum, affine, track_running_stats: as :class:`torch.nn.BatchNorm2d`.
        act: ``"relu"`` or None.
        recompute: False keeps every activation, for second derivatives (``create_graph=True``).

    Shape: input ``(N, C, H, W)``, residual and output ``(N, K, H', W')``; float32, float64, bfloat16 or float16.
    The state_dict is that of its submodules: ``conv.weight``, ``norm.weight``, ``norm.running_mean`` ...

    ``norm(conv(input), residual)`` is computed in evaluation, where no gradient is recorded, under ``torch.compile``,
    ``torch.func``, FX and export, and while one of the two submodules has hooks or has been replaced.

    In-place changes of the activation between two layers are noticed, if torch counts them: those through ``.data`` or
    a numpy array are not.

    Raises:
        ValueError: act is unknown, or as the two layers.
        RuntimeError: as the two layers; a derivative of a derivative, unless ``recompute=False``.

    Example:
        >>> block = nn.Sequential(convnorm.nn.ConvNormAct2d(3, 64, 3, padding=1), convnorm.nn.ConvNormAct2d(64, 64, 3))
    """

    _parts = (Conv2d, BatchNormAct2d)


class ConvNormAct3d(_ConvNormAct):
    """Convolution, batch norm, ReLU of ``(N, C, D, H, W)``; see :class:`ConvNormAct2d`."""

    _parts = (Conv3d, BatchNormAct3d)
