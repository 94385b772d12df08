"""Plots of a table: curves, returns, action densities as in the Figures 5 to 7 of the paper, estimates."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from training.contract.files import write_atomic
from training.evaluation.intervals import mean_interval
from training.experiments.measured import Key, Measured
from training.experiments.table import Table, slug

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "figure.constrained_layout.use": True,
}
_GRID = np.linspace(-1.0, 1.0, 201)


def draw(table: Table, folder: Path, measured: Mapping[Key, Measured]) -> list[str]:
    """Write the plots of every world as PNG; returns their names."""
    drawn = []
    with plt.style.context(_STYLE):
        for world in table.worlds:
            own = {
                method.name: found
                for method in table.methods
                if (
                    found := [
                        measured[world, s, method.name]
                        for s in table.seeds
                        if (world, s, method.name) in measured
                    ]
                )
            }
            heads = [head.name for head in table.ranking_settings(world).heads]
            figures = {
                "curves": _curves(own),
                "returns": _returns(own),
                "actions": _actions(own, heads),
                "spread": _spread(own, heads),
                "estimates": _estimates(own),
            }
            for name, figure in figures.items():
                if figure is not None:
                    drawn.append(f"{slug(world)}-{name}.png")
                    _save(figure, folder / drawn[-1])
    return drawn


def _save(figure: Figure, path: Path) -> None:
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)


def _colours(names: Mapping[str, object]) -> dict[str, object]:
    palette = plt.get_cmap("tab20")
    return {name: palette((2 * i + i // 10) % 20) for i, name in enumerate(names)}


def _curves(own: Mapping[str, list[Measured]]) -> Figure | None:
    """True session return over gradient steps: mean over seeds, and its 95 % interval."""
    colours = _colours(own)
    learners = {name: units for name, units in own.items() if all(u.result["curve"] for u in units)}
    if not learners:
        return None
    figure, axes = plt.subplots(figsize=(7.0, 4.0))
    for name, units in learners.items():
        steps = [point["step"] for point in units[0].result["curve"]]
        values = np.array([[point["session_return"] for point in u.result["curve"]] for u in units])
        axes.plot(steps, values.mean(axis=0), marker="o", markersize=3, label=name, color=colours[name])
        if len(units) > 1:
            ends = [mean_interval(column, 0.95) for column in values.T]
            lower, upper = [e["lower"] for e in ends], [e["upper"] for e in ends]
            axes.fill_between(steps, lower, upper, alpha=0.12, color=colours[name], linewidth=0)
    axes.set_xlabel("gradient steps")
    axes.set_ylabel("true session return")
    axes.legend(fontsize=7)
    return figure


def _returns(own: Mapping[str, list[Measured]]) -> Figure:
    """True session return by method: every seed a dot, mean and 95 % interval over seeds."""
    colours, names = _colours(own), list(own)
    figure, axes = plt.subplots(figsize=(7.0, 0.4 * len(names) + 1.2))
    for place, name in enumerate(names):
        values = np.array([u.arrays["session_return"].mean() for u in own[name]])
        axes.scatter(values, np.full(len(values), place), s=10, alpha=0.5, color=colours[name])
        if len(values) > 1:
            interval = mean_interval(values, 0.95)
            axes.plot(
                [interval["lower"], interval["upper"]], [place, place], color=colours[name], linewidth=2
            )
        axes.scatter([values.mean()], [place], marker="|", s=150, color=colours[name])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("true session return")
    return figure


def _actions(own: Mapping[str, list[Measured]], heads: list[str]) -> Figure | None:
    """Density of each head's action by method, over states and seeds (Figures 5 to 7)."""
    colours = _colours(own)
    acting = _acting(own)
    if not acting:
        return None
    rows = -(-len(heads) // 4)
    figure, grid = plt.subplots(rows, 4, figsize=(10.0, 2.2 * rows), squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(heads):
            axes.set_visible(False)
            continue
        for name, actions in acting.items():
            values = actions[..., place].ravel()
            if values.std() < 1e-4:  # a constant has no density: a line where it is
                axes.axvline(values.mean(), color=colours[name], linestyle=":", label=name)
            else:
                axes.plot(_GRID, gaussian_kde(values)(_GRID), color=colours[name], label=name)
        axes.set_title(heads[place], fontsize=9)
        axes.set_yticks([])
    figure.supxlabel("action (weight scaled to its interval)")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def _spread(own: Mapping[str, list[Measured]], heads: list[str]) -> Figure | None:
    """Deviation over seeds of the action in one state, by method and head: how stable learning is."""
    acting = {name: actions for name, actions in _acting(own).items() if len(actions) > 1}
    if not acting:
        return None
    colours, width = _colours(own), 0.8 / len(acting)
    figure, axes = plt.subplots(figsize=(10.0, 3.2))
    for place, (name, actions) in enumerate(acting.items()):
        deviation = actions.std(axis=0, ddof=1).mean(axis=0)
        axes.bar(np.arange(len(heads)) + place * width, deviation, width, color=colours[name], label=name)
    axes.set_xticks(np.arange(len(heads)) + 0.4 - width / 2, heads)
    axes.set_ylabel("deviation over seeds")
    axes.legend(fontsize=7, ncols=3)
    return figure


def _acting(own: Mapping[str, list[Measured]]) -> dict[str, np.ndarray]:
    """Actions [seeds, states, k] of the methods that have actions, on the same states."""
    return {
        name: np.array([u.arrays["actions"] for u in units])
        for name, units in own.items()
        if all("actions" in u.arrays for u in units)
    }


def _estimates(own: Mapping[str, list[Measured]]) -> Figure | None:
    """Offline estimate against the true discounted return, a panel an estimator."""
    units = [u for found in own.values() for u in found if u.result["offline"]]
    names = sorted({name for u in units for name in u.result["offline"]["estimators"]})
    if not names:
        return None
    colours = _colours(own)
    figure, grid = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.6), squeeze=False)
    for axes, estimator in zip(grid[0], names, strict=True):
        for method, found in own.items():
            points = [(u.arrays["discounted"].mean(), u.estimate(estimator)) for u in found]
            points = [(truth, estimate) for truth, estimate in points if estimate is not None]
            if points:
                axes.scatter(*np.array(points).T, s=14, color=colours[method], label=method)
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color="#6b7280", linewidth=0.8)  # estimate = truth
        axes.set_title(estimator, fontsize=9)
        axes.set_xlabel("true discounted return")
        if max(abs(v) for v in axes.get_ylim()) > 20.0 * max(abs(low), abs(high)):
            axes.set_yscale("symlog")  # an absurd value must not hide the others
    grid[0][0].set_ylabel("estimate")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    return figure
