"""Rank correlation and coverage of the estimators, as numbers, as tables and as a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import kendalltau, spearmanr
from scipy.stats import t as student_t

from training.contract.files import write_atomic
from training.contract.settings import EvaluationSettings
from training.experiments.estimators.bench import STATIC
from training.experiments.estimators.judging import WHOLE_CONFIDENCE
from training.experiments.pages import wrapped

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def _target(estimator: str) -> str:
    """Which of the true returns an estimator estimates."""
    if estimator in ("session_return", "lstd_q"):
        return "session_return"
    return "smoothed_discounted" if estimator in ("pdis", "dr") else "discounted"


def rank(truth: Mapping[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    result = {}
    for estimator in parts[0]["estimates"]:
        estimates = {name: i for part in parts for name, i in part["estimates"][estimator].items()}
        differences = {name: i for part in parts for name, i in part["differences"][estimator].items()}
        values = [i["value"] for i in estimates.values()]
        result[estimator] = {
            "policies": len(values),
            "estimates": estimates,
            "differences": differences,
            "root_mean_square_error": float(
                np.sqrt(
                    np.mean([(i["value"] - truth[n][_target(estimator)]) ** 2 for n, i in estimates.items()])
                )
            ),
            **{
                against: {
                    "spearman": float(spearmanr(values, true).statistic),
                    "kendall": float(kendalltau(values, true).statistic),
                }
                for against in ("discounted", "session_return")
                for true in [[truth[name][against] for name in estimates]]
            },
        }
    sizes = {name: size for part in parts for name, size in part["effective_sessions"].items()}
    return {"transitions": parts[0]["transitions"], "estimators": result, "effective_sessions": sizes}


def coverage(
    truth: Mapping[str, Any],
    names: tuple[str, ...],
    draws: list[dict[str, Any]],
    gain: float,
    how: EvaluationSettings,
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for estimator in draws[0]["estimates"] if draws else ():
        target, own = _target(estimator), {}
        rival = [d["estimates"][estimator][names[0]]["value"] for d in draws]
        # half an interval of 95 % is so many times half of one of the settings' confidence
        freedom = (how.bootstraps if estimator == "pdis" else how.replicates) - 1
        of_95 = float(np.divide(*student_t.ppf([0.975, 0.5 + how.confidence / 2.0], freedom)))
        for name in names:
            found = [d["estimates"][estimator][name] for d in draws]
            own[name] = _covered(found, truth[name][target], of_95)
        for name in names[1:]:
            difference = truth[name][target] - truth[names[0]][target]
            found = [d["differences"][estimator][name] for d in draws]
            own[f"{name} - {names[0]}"] = {
                **_covered(found, difference, of_95),
                "better": float(np.mean([i["lower"] > 0 for i in found])),
                "worse": float(np.mean([i["upper"] < 0 for i in found])),
                "passed": float(
                    np.mean([i["lower"] > gain * abs(v) for i, v in zip(found, rival, strict=True)])
                ),
            }
        result[estimator] = own
    return result


CLASSES = {"untrained": "untrained networks", "batchrl_mtf": "BatchRL-MTF", "td3": "TD3 (corners)"}


def whole(truth: Mapping[str, Any], logs: list[dict[str, Any]]) -> dict[str, Any]:
    """The estimators in closed form over many logs: ranks, regret of what they choose, coverage by class.

    A policy is chosen by the highest lower bound of its difference to static weights, static itself where no
    bound is above 0. All is of the session's undiscounted return.
    """
    result: dict[str, Any] = {}
    for estimator in logs[0]["differences"] if logs else ():
        names = list(logs[0]["differences"][estimator])
        true = np.array([truth[n]["session_return"] - truth[STATIC]["session_return"] for n in names])
        found = [[log["differences"][estimator][n] for n in names] for log in logs]
        value = np.array([[i["value"] for i in row] for row in found])
        lower = np.array([[i["lower"] for i in row] for row in found])
        upper = np.array([[i["upper"] for i in row] for row in found])
        kind = np.array(
            [next((c for k, c in CLASSES.items() if n.startswith(k)), "constants") for n in names]
        )
        inner = kind != CLASSES["td3"]
        chosen = np.where(lower.max(axis=1) > 0.0, true[lower.argmax(axis=1)], 0.0)
        regret = max(true.max(), 0.0) - chosen
        covered = (lower <= true) & (true <= upper)
        result[estimator] = {
            "logs": len(logs),
            "spearman": float(np.median([spearmanr(row, true).statistic for row in value])),
            "spearman_without_corners": float(
                np.median([spearmanr(row[inner], true[inner]).statistic for row in value])
            ),
            "regret": {
                "median": float(np.median(regret)),
                "mean": float(regret.mean()),
                "worst": float(regret.max()),
            },
            "coverage": {str(name): float(covered[:, kind == name].mean()) for name in np.unique(kind)},
            "bias": float((value - true).mean()),
            "policies": {
                name: {
                    "true": float(t),
                    "mean": float(v.mean()),
                    "least": float(v.min()),
                    "most": float(v.max()),
                }
                for name, t, v in zip(names, true, value.T, strict=True)
            },
        }
    return result


def _covered(intervals: list[dict[str, float]], truth: float, of_95: float) -> dict[str, float]:
    values = np.array([i["value"] for i in intervals])
    halves = np.array([i["upper"] - i["value"] for i in intervals])
    error = np.abs(values - truth)
    return {
        "truth": truth,
        "coverage": float((error <= halves).mean()),
        "coverage_95": float((error <= of_95 * halves).mean()),
        "draws": len(values),
        "bias": float(values.mean() - truth),
        "deviation": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "mean_half_width": float(halves.mean()),
        "mean_lower": float(np.mean([i["lower"] for i in intervals])),
    }


def markdown(result: Mapping[str, Any], above: str) -> str:
    """The result as tables for the docs, below what stands ``above`` them."""
    lines = [
        "# The judge's estimators against the truth",
        "",
        above,
        "",
        "![Estimate against true discounted return](estimators.png)",
        "",
        f"{len(result['truth'])} policies, one log of {result['rank']['transitions']} transitions.",
        "",
        "| estimator | Spearman | Kendall | Spearman, undiscounted | error (rms) |",
        "|---|---|---|---|---|",
    ]
    for name, own in result["rank"]["estimators"].items():
        lines.append(
            f"| {name} | {own['discounted']['spearman']:.2f} | {own['discounted']['kendall']:.2f} | "
            f"{own['session_return']['spearman']:.2f} | {own['root_mean_square_error']:.2f} |"
        )
    lines += [
        "",
        wrapped(
            f"Intervals of {result['evaluation']['confidence']:.0%} over {result['sizes']['draws']} logs of "
            f"{result['sizes']['draw_sessions']} sessions. *Better* and *worse*: shares of logs on which the "
            f"interval of the difference lies above or below 0; *passed*: on which its lower bound is above "
            f"{result['gate']['gain']:.0%} of the value of {STATIC}, the gate's bar."
        ),
        "",
        "| estimator | of | truth | bias | deviation | half width | coverage | of 95 % |"
        " better | worse | passed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in result["coverage"].items():
        for of, c in own.items():
            said = [f"{c[key]:.0%}" if key in c else "" for key in ("better", "worse", "passed")]
            lines.append(
                f"| {name} | {of} | {c['truth']:.2f} | {c['bias']:+.2f} | {c['deviation']:.2f} | "
                f"{c['mean_half_width']:.2f} | {c['coverage']:.0%} | {c['coverage_95']:.0%} | "
                f"{' | '.join(said)} |"
            )
    if result["seed_spread"]:
        lines += ["", "| learner | deviation over seeds in a state | of the worst head |", "|---|---|---|"]
        lines += [
            f"| {name} | {s['mean']:.3f} | {s['worst']:.3f} |" for name, s in result["seed_spread"].items()
        ]
    return "\n".join(lines) + "\n"


def closed_markdown(result: Mapping[str, Any], above: str) -> str:
    """The estimators in closed form as a page, below what stands ``above``."""
    lines = [
        "# The closed forms of the judge against the truth",
        "",
        above,
        "",
        wrapped(
            f"{len(result['truth']) - 1} policies and static weights, on {result['sizes']['logs']} logs of "
            f"{result['sizes']['judge_sessions']} sessions each; all is of differences to static weights in "
            "undiscounted return. Median Spearman with the truth; regret of the policy with the highest "
            "lower bound (of static weights where none is above 0) against the truly best; how often "
            f"intervals of {WHOLE_CONFIDENCE:.0%} hold the truth."
        ),
        "",
        "| estimator | Spearman | without TD3 | regret, median | mean | worst | bias |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, own in result["whole"].items():
        lines.append(
            f"| {name} | {own['spearman']:.2f} | {own['spearman_without_corners']:.2f} | "
            f"{own['regret']['median']:.2f} | {own['regret']['mean']:.2f} | {own['regret']['worst']:.2f} | "
            f"{own['bias']:+.2f} |"
        )
    kinds = list(next(iter(result["whole"].values()))["coverage"])
    lines += ["", f"| intervals hold the truth of | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name, own in result["whole"].items():
        held = [f"{own['coverage'][kind]:.0%}" for kind in kinds]
        lines.append(f"| {name} | {' | '.join(held)} |")
    lines += ["", "| policy | truly | by session_return, mean | lowest | highest |", "|---|---|---|---|---|"]
    for name, own in result["whole"]["session_return"]["policies"].items():
        lines.append(
            f"| {name} | {own['true']:+.2f} | {own['mean']:+.2f} | {own['least']:+.2f} | {own['most']:+.2f} |"
        )
    return "\n".join(lines) + "\n"


def plot(path: Path, result: Mapping[str, Any]) -> None:
    """Estimate against truth, a panel an estimator."""
    estimators, truth = result["rank"]["estimators"], result["truth"]
    figure, axes = plt.subplots(1, len(estimators), figsize=(3.6 * len(estimators), 3.6), squeeze=False)
    for ax, (estimator, own) in zip(axes[0], estimators.items(), strict=True):
        target = _target(estimator)
        x = np.array([truth[name][target] for name in own["estimates"]])
        y = np.array([i["value"] for i in own["estimates"].values()])
        half = np.array([i["upper"] - i["value"] for i in own["estimates"].values()])
        ax.errorbar(x, y, half, fmt="o", ms=3, lw=0.7, color="#2a5d84", ecolor="#a9c3d6")
        ends = [x.min() - 0.5, x.max() + 0.5]
        ax.plot(ends, ends, lw=0.8, color="#999999")
        middle, reach = np.median(y), max(np.ptp(x), 3 * np.median(np.abs(y - np.median(y)))) + 1.0
        ax.set_ylim(middle - reach, middle + reach)
        ax.set_title(f"{estimator}: Spearman {own['discounted']['spearman']:.2f}", fontsize=9)
        ax.set_xlabel(
            "true discounted return" + (" (smoothed)" if target != "discounted" else ""), fontsize=8
        )
    axes[0][0].set_ylabel("estimate", fontsize=8)
    figure.tight_layout()
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    plt.close(figure)
