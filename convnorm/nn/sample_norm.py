"""Modules of norms with statistics per sample: torch's own, with the forward computed by convnorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional as CF

torch.fx.wrap("_instance_norm")  # one node that holds the module: its checks and its mode stay alive


class LayerNorm(nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` by :func:`convnorm.functional.layer_norm`: same arguments, same state_dict.

    Shape: ``(*, *normalized_shape)``, input and output; float32, float64, bfloat16 or float16 (parameters of
    that dtype, or float32 for 16-bit input). The output is contiguous.

    Raises:
        RuntimeError, NotImplementedError: as the functional.

    Source: :class:`torch.nn.LayerNorm`.

    Example:
        >>> convnorm.nn.LayerNorm(384)(torch.randn(8, 197, 384)).shape
        torch.Size([8, 197, 384])
    """

    def forward(self, input: Tensor) -> Tensor:
        return CF.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class GroupNorm(nn.GroupNorm):
    """:class:`torch.nn.GroupNorm` by :func:`convnorm.functional.group_norm`: same arguments, same state_dict.

    Shape: ``(N, C, *)``, input and output; float32, float64, bfloat16 or float16 (parameters of that dtype, or
    float32 for 16-bit input); channels_last input gives channels_last output.

    Raises:
        ValueError: groups that do not divide the channels; one value per group in a batch of one.
        RuntimeError, NotImplementedError: as the functional.

    Source: :class:`torch.nn.GroupNorm`.

    Example:
        >>> convnorm.nn.GroupNorm(4, 32)(torch.randn(8, 32, 14, 14)).shape
        torch.Size([8, 32, 14, 14])
    """

    def forward(self, input: Tensor) -> Tensor:
        return CF.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _instance_norm(self: nn.modules.instancenorm._InstanceNorm, input: Tensor) -> Tensor:
    """torch's forward, with its checks; it calls _apply_instance_norm for batched input."""
    return nn.modules.instancenorm._InstanceNorm.forward(self, input)


class _InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """What the three instance norm modules share."""

    def forward(self, input: Tensor) -> Tensor:
        return _instance_norm(self, input)

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        use_input_stats = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        return CF.instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, use_input_stats, momentum, self.eps
        )


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """:class:`torch.nn.InstanceNorm1d` by :func:`convnorm.functional.instance_norm`: same arguments, same state_dict.

    Shape: ``(N, C, L)`` or ``(C, L)``, input and output; see :class:`InstanceNorm2d`.
    """


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """:class:`torch.nn.InstanceNorm2d` by :func:`convnorm.functional.instance_norm`: same arguments, same state_dict.

    Shape: ``(N, C, H, W)`` or ``(C, H, W)``, input and output; float32, float64, bfloat16 or float16; the output has
    input's layout (torch's is always contiguous).

    Raises:
        ValueError: input of another rank; one spatial element where the image's own statistics are used.
        RuntimeError, NotImplementedError: as the functional.

    Source: :class:`torch.nn.InstanceNorm2d`.

    Example:
        >>> convnorm.nn.InstanceNorm2d(3)(torch.randn(8, 3, 16, 16)).shape
        torch.Size([8, 3, 16, 16])
    """


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """:class:`torch.nn.InstanceNorm3d` by :func:`convnorm.functional.instance_norm`: same arguments, same state_dict.

    Shape: ``(N, C, D, H, W)`` or ``(C, D, H, W)``, input and output; see :class:`InstanceNorm2d`.
    """
