"""What is compared: convnorm.bench.contests, which an installed convnorm has too."""

from convnorm.bench.contests import ROOMS, problems

__all__ = ["ROOMS", "problems"]
