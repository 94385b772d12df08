"""How good is a policy, by the log of others? Estimates with intervals, and how stable its actions are."""

from training.evaluation.estimators import Judgement, estimate
from training.evaluation.judge import assess, evaluate
from training.evaluation.steadiness import steadiness

__all__ = ["Judgement", "assess", "estimate", "evaluate", "steadiness"]
