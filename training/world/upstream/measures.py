"""How good predictions are: AUC with its interval, and calibration."""

import numpy as np
from scipy.special import expit
from scipy.stats import norm, rankdata


def auc(labels: np.ndarray, scores: np.ndarray, confidence: float = 0.95) -> dict[str, float | int | None]:
    """Area under the ROC curve with DeLong's interval on the logit scale.

    ``{"value", "lower", "upper", "positives"}``; all three are None with labels of one kind only.
    """
    positive = np.asarray(labels) > 0
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return {"value": None, "lower": None, "upper": None, "positives": m}
    ranks = rankdata(scores)
    above = (ranks[positive] - rankdata(scores[positive])) / n  # share of negatives below each positive
    below = 1.0 - (ranks[~positive] - rankdata(scores[~positive])) / m
    value = float(above.mean())
    variance = (above.var(ddof=1) / m if m > 1 else 0.25) + (below.var(ddof=1) / n if n > 1 else 0.25)
    inner = min(max(value, 1e-6), 1.0 - 1e-6)
    centre = np.log(inner / (1.0 - inner))
    half = norm.ppf(0.5 + confidence / 2.0) * np.sqrt(variance) / (inner * (1.0 - inner))
    lower, upper = float(expit(centre - half)), float(expit(centre + half))
    return {"value": value, "lower": lower, "upper": upper, "positives": m}


def calibration(labels: np.ndarray, predictions: np.ndarray, bins: int = 20) -> dict[str, float | None]:
    """Mean predicted over mean observed, and the expected calibration error in equal-sized bins.

    ``{"predicted", "observed", "ratio" (None without positives), "ece"}`` in the label's unit.
    """
    order = np.argsort(predictions, kind="stable")
    gaps = [
        len(part) * abs(predictions[part].mean() - labels[part].mean())
        for part in np.array_split(order, min(bins, len(order)))
    ]
    predicted, observed = float(predictions.mean()), float(labels.mean())
    return {
        "predicted": predicted,
        "observed": observed,
        "ratio": predicted / observed if observed > 0 else None,
        "ece": float(sum(gaps) / len(order)),
    }
