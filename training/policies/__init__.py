"""Learners of fusion policies, one readable file an algorithm, and the daily retrain around them."""

from training.policies.retrain import ALGORITHMS, train

__all__ = ["ALGORITHMS", "train"]
