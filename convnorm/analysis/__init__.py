"""Looking at a model and at its layers: sizes, costs, receptive fields, filters, shifts, algorithms."""

from .algorithms import Algorithm, compare_algorithms
from .convolve import convolve2d
from .fields import receptive_field, receptive_field_by_gradient
from .filters import filters_image
from .receptive import Field
from .shifts import Agreement, equivariance, invariance, shifted
from .summary import Row, Summary, summary

__all__ = [
    "Agreement",
    "Algorithm",
    "Field",
    "Row",
    "Summary",
    "compare_algorithms",
    "convolve2d",
    "equivariance",
    "filters_image",
    "invariance",
    "receptive_field",
    "receptive_field_by_gradient",
    "shifted",
    "summary",
]
