"""ONNX: convnorm's ops as standard ONNX ops, for ``torch.onnx.export(..., dynamo=True)``."""

from __future__ import annotations

from collections.abc import Callable


def translation_table() -> dict[Callable, Callable]:
    """What ``torch.onnx.export`` takes as ``custom_translation_table``: every forward op in standard ONNX (opset 18).

    - convolution: Conv, with Add (residual) and Relu where they are fused
    - transposed convolution: ConvTranspose, followed by Slice where sizes are dynamic
    - max and average pooling: MaxPool (with indices), AveragePool
    - adaptive pooling: GlobalMaxPool, GlobalAveragePool; MaxPool, AveragePool where sizes divide; else, for sizes known
      at export, products with constant matrices (average), Gather and ReduceMax (max)
    - max un-pooling: ScatterElements, which takes torch's indices as they are
    - batch norm: BatchNormalization, Add (residual), Relu; statistics of the batch by ReduceMean
    - layer norm: LayerNormalization
    - group and instance norm: InstanceNormalization of the groups, then Mul and Add

    Export in evaluation mode: there is no ONNX op that updates running statistics.

    Raises:
        ImportError: onnxscript is not installed.

    At export, as the cause of ``torch.onnx``'s own error, a ValueError: sizes that must be known at export and are
    dynamic; indices of adaptive max pooling where output sizes do not divide input sizes.

    Example:
        >>> torch.onnx.export(model.eval(), (x,), "model.onnx", dynamo=True,
        ...                   custom_translation_table=convnorm.onnx.translation_table())
    """
    try:
        from . import _conv, _norms, _pooling
    except ImportError as missing:
        raise ImportError(
            f"convnorm.onnx needs the package '{missing.name}': pip install onnx onnxscript (and onnxruntime to run)"
        ) from missing
    return {**_conv.table(), **_pooling.table(), **_norms.table()}
