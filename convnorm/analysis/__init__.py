"""Looking at a model: sizes, multiply-adds, bytes and receptive fields."""

from .summary import Row, Summary, summary

__all__ = ["Row", "Summary", "summary"]
