"""Modules of norms with statistics per sample: torch's own, with the forward computed by convnorm."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional as CF


class LayerNorm(nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` by :func:`convnorm.functional.layer_norm`: same state_dict."""

    def forward(self, input: Tensor) -> Tensor:
        return CF.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
