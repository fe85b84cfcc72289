"""What "the same answer" means here, for this project's tests and for yours."""

from .compare import assert_accurate, assert_same, error_bound, max_error

__all__ = ["assert_accurate", "assert_same", "error_bound", "max_error"]
