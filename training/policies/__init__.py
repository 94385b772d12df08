"""How does a policy learn? One readable file an algorithm, and the daily retrain around them."""

from training.policies.retrain import ALGORITHMS, train

__all__ = ["ALGORITHMS", "train"]
