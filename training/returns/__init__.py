"""What does holding a weight vector over a session bring? A model of session returns, in closed form.

The regression that proposes policies (:mod:`training.policies.return_regression`) and the judge's session
estimator (:mod:`training.evaluation.session_returns`) read the same model: sufficient statistics of the log
(:mod:`training.returns.statistics`), and the posterior that they give (:mod:`training.returns.model`).
"""

from training.returns.features import Features
from training.returns.model import (
    Learnt,
    ReturnModel,
    Surface,
    fit,
    fit_like,
    learn,
    learn_log,
    learn_parts,
)
from training.returns.statistics import Parts, Statistics, of_parts, of_transitions

__all__ = [
    "Features",
    "Learnt",
    "Parts",
    "ReturnModel",
    "Statistics",
    "Surface",
    "fit",
    "fit_like",
    "learn",
    "learn_log",
    "learn_parts",
    "of_parts",
    "of_transitions",
]
