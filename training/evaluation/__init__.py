"""The judge: offline estimates of policies with intervals, and how stable their actions are."""

from training.evaluation.estimators import Judgement, estimate
from training.evaluation.judge import assess, evaluate

__all__ = ["Judgement", "assess", "estimate", "evaluate"]
