"""The judge: offline estimates of policies with intervals, and how stable their actions are."""

from training.evaluation.judge import evaluate

__all__ = ["evaluate"]
