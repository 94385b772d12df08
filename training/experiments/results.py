"""Results of a table: means over seeds with 95 % intervals, pooled sessions, Markdown, plots."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from training.contract.files import write_json_atomic, write_text_atomic
from training.evaluation.intervals import mean_interval
from training.evaluation.stability import seed_spread
from training.experiments import plots
from training.experiments.measured import Key, Measured
from training.experiments.pages import header, provenance, wrapped
from training.experiments.table import Table
from training.world.simulator.drivers import clustered_mean

PAPERS = "conservative_ope"

# column: heading, digits, and whether it is a change relative to the baseline
COLUMNS: dict[str, tuple[str, int, bool]] = {
    "v_hat": ("V̂ (paper's estimator)", 2, False),
    "session_return": ("true session return", 3, False),
    "session_return_change": ("session return", 2, True),
    "discounted_return": ("true discounted return", 3, False),
    "watch_s": ("watch time of a session, s", 1, False),
    "watch_change": ("watch time", 2, True),
    "adtime_change": ("ADTime", 2, True),
    "upirate_change": ("UPIRate", 2, True),
    "bound_share": ("actions on a bound", 3, False),
    "distance_to_logged": ("distance to the nearest logged action", 3, False),
    "seed_spread": ("deviation of an action over seeds", 3, False),
    "sessions": ("sessions to learn from", 0, False),
    "tuning_runs": ("runs it was tuned by", 0, False),
}


def write_results(table: Table, folder: Path, paths: Mapping[Key, Path], command: str) -> dict[str, Any]:
    """Write ``results.json``, ``results.md`` and the plots from the finished units; returns the results.

    ``command`` stands above the tables of ``results.md``, with the date, the machine and the versions.

    ``rows[world][method][column]`` has ``mean``, ``lower``, ``upper`` (Student's t over seeds; the ends are
    null for one seed) and ``seeds``; ``pooled`` is the paired difference of session return to the baseline
    in percent over all sessions (users as clusters); ``rank_correlation[estimator]`` is Spearman's between
    estimate and true discounted return over all units; ``missing`` names units that are not finished.
    """
    measured = {key: Measured(path) for key, path in paths.items()}
    rows: dict[str, Any] = {}
    for world in table.worlds:
        rows[world] = {}
        for method in table.methods:
            own = {
                s: measured[world, s, method.name] for s in table.seeds if (world, s, method.name) in measured
            }
            base = {
                s: measured[world, s, table.baseline] for s in own if (world, s, table.baseline) in measured
            }
            if own:
                columns: dict[str, Any] = {column: _column(column, own, base) for column in table.columns}
                rows[world][method.name] = {
                    "seeds": sorted(own),
                    **columns,
                    "pooled": _pooled(own, base),
                    "learning_s": _over_seeds([m.result["learning_s"] for m in own.values()]),
                    "seconds": _over_seeds([m.result["seconds"] for m in own.values()]),
                }
    expected = [(w, s, m.name) for w in table.worlds for s in table.seeds for m in table.methods]
    results = {
        "table": table.model_dump(mode="json"),
        "rows": rows,
        "rank_correlation": _rank_correlation(measured),
        "missing": [" / ".join(map(str, key)) for key in expected if key not in measured],
    }
    write_json_atomic(folder / "results.json", results)
    drawn = plots.draw(table, folder / "plots", measured) if measured else []
    write_text_atomic(folder / "results.md", markdown(table, results, drawn, header(provenance(command))))
    return results


def _column(column: str, own: Mapping[int, Measured], base: Mapping[int, Measured]) -> dict[str, Any] | None:
    """A column over the seeds; None where the method has no such number."""
    if column == "seed_spread":
        actions = [m.arrays["actions"] for m in own.values() if "actions" in m.arrays]
        spread = seed_spread(np.array(actions))["mean"] if len(actions) > 1 else None
        return None if spread is None else {"mean": spread, "lower": None, "upper": None, "values": []}
    values = []
    for seed, one in own.items():
        name = column.removesuffix("_change")
        value = _level(name, one)
        if value is None:
            return None
        if COLUMNS[column][2]:
            before = _level(name, base[seed]) if seed in base else None
            if before is None:
                return None
            value = 100.0 * (value / before - 1.0)
        values.append(value)
    return _over_seeds(values)


def _level(name: str, one: Measured) -> float | None:
    offline = one.result["offline"]
    if name == "v_hat":
        return one.estimate(PAPERS)
    if name == "bound_share":
        return offline and offline["estimates"]["policy"]["bound_share"]
    if name == "distance_to_logged":
        return offline and offline["estimates"]["policy"]["mean_distance_to_logged"]
    if name in ("sessions", "tuning_runs"):
        return float(one.result[name])
    arrays = one.arrays
    return {
        "session_return": lambda: float(arrays["session_return"].mean()),
        "discounted_return": lambda: float(arrays["discounted"].mean()),
        "watch_s": lambda: float(arrays["play_s"].mean()),
        "watch": lambda: float(arrays["play_s"].mean()),
        "adtime": lambda: float(arrays["adtime_s"].mean()),
        "upirate": lambda: float(arrays["positive_plays"].sum() / max(arrays["plays"].sum(), 1.0)),
    }[name]()


def _over_seeds(values: list[float]) -> dict[str, Any]:
    if len(values) < 2:
        return {"mean": values[0], "lower": None, "upper": None, "values": values}
    interval = mean_interval(np.array(values), 0.95)
    return {
        "mean": interval["value"],
        "lower": interval["lower"],
        "upper": interval["upper"],
        "values": values,
    }


def _pooled(own: Mapping[int, Measured], base: Mapping[int, Measured]) -> dict[str, float] | None:
    """Paired difference of session return to the baseline over all sessions, in percent of the baseline's."""
    if not base or set(base) != set(own):
        return None
    difference = np.concatenate(
        [m.arrays["session_return"] - base[s].arrays["session_return"] for s, m in own.items()]
    )
    users = np.concatenate([m.arrays["user_row"] for m in own.values()])
    level = float(np.concatenate([m.arrays["session_return"] for m in base.values()]).mean())
    mean, lower, upper = (100.0 * value / level for value in clustered_mean(difference, users))
    return {"mean": mean, "lower": lower, "upper": upper, "sessions": len(difference)}


def _rank_correlation(measured: Mapping[Key, Measured]) -> dict[str, dict[str, float]]:
    """Spearman's ρ of estimate and truth by estimator, over units that have both."""
    names = {
        name
        for one in measured.values()
        if one.result["offline"]
        for name in one.result["offline"]["estimators"]
    }
    out = {}
    for name in sorted(names):
        pairs = [(one.estimate(name), _level("discounted_return", one)) for one in measured.values()]
        pairs = [(estimate, truth) for estimate, truth in pairs if estimate is not None]
        if len(pairs) >= 3:
            estimates, truths = np.array(pairs).T
            if np.ptp(estimates) > 0.0 and np.ptp(truths) > 0.0:
                out[name] = {"rho": float(spearmanr(estimates, truths).statistic), "units": len(pairs)}
    return out


def markdown(table: Table, results: Mapping[str, Any], drawn: list[str], above: str) -> str:
    """The table for a person: what stands ``above`` it, then a section a world."""
    seeds = len(table.seeds)
    lines = [f"# {table.title}", "", above, ""]
    lines += [
        wrapped(
            f"{seeds} seeds; mean and 95 % interval over seeds (Student's t). Changes are relative to "
            f"*{table.baseline}* on the same sessions; *pooled* is the paired difference of session return "
            "over all sessions of all seeds, users as clusters."
        ),
        "",
    ]
    if results["missing"]:
        lines += [f"**Not complete:** {len(results['missing'])} units are missing.", ""]
    for world, rows in results["rows"].items():
        headings = ["method", *(_heading(column) for column in table.columns), "session return, pooled"]
        lines += [f"## {world}", "", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
        for method, row in rows.items():
            cells = [method] + [_cell(row[column], column) for column in table.columns]
            lines.append(f"| {' | '.join([*cells, _percent(row['pooled'], 2)])} |")
        lines.append("")
    for estimator, found in results["rank_correlation"].items():
        lines.append(
            f"- rank correlation of {estimator} with the true discounted return: {found['rho']:.3f} "
            f"({found['units']} units)"
        )
    lines += ["", *(f"![{Path(name).stem}](plots/{name})" for name in drawn), ""]
    return "\n".join(lines)


def _heading(column: str) -> str:
    heading, _, change = COLUMNS[column]
    return f"{heading}, change" if change else heading


def _cell(value: Mapping[str, Any] | None, column: str) -> str:
    _, digits, change = COLUMNS[column]
    if change:
        return _percent(value, digits)
    if value is None:
        return "–"
    if value["lower"] is None or value["lower"] == value["upper"]:
        return f"{value['mean']:.{digits}f}"
    return f"{value['mean']:.{digits}f} ({value['lower']:.{digits}f} to {value['upper']:.{digits}f})"


def _percent(value: Mapping[str, Any] | None, digits: int) -> str:
    if value is None:
        return "–"
    if value["lower"] is None:
        return f"{value['mean']:+.{digits}f} %"
    return f"{value['mean']:+.{digits}f} % ({value['lower']:+.{digits}f} to {value['upper']:+.{digits}f})"
