"""Charts of the day's page, as inline SVG so that a page is one file that can be sent around."""

import io
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

COLOURS = {
    "champion": "#1b6ca8",
    "challenger": "#7a3e9d",
    "static": "#6b7280",
    "random": "#c2571a",
    "noise": "#2f855a",
}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "svg.hashsalt": "mtf",  # equal figures give equal bytes
}


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _colour(name: str) -> str:
    return COLOURS.get(name, "#374151")


def lines(series: Mapping[str, tuple[Sequence, Sequence]], *, x: str, y: str) -> str:
    """One line per name: (xs, ys)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.4, 2.5))
        for name, (xs, ys) in series.items():
            axes.plot(xs, ys, marker="o" if len(xs) < 15 else None, ms=4, label=name, color=_colour(name))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if len(series) > 1:
            axes.legend(frameon=False)
        axes.tick_params(axis="x", labelrotation=30 if x == "day" else 0)
        return _svg(figure)


def curves(columns: Mapping[str, Sequence[float]], steps: Sequence[int]) -> str:
    """Small multiples, one panel a curve, over training steps."""
    names = list(columns)
    with plt.rc_context(STYLE):
        across = min(len(names), 3)
        down = -(-len(names) // across)
        figure, panels = plt.subplots(down, across, figsize=(3.1 * across, 1.9 * down), squeeze=False)
        for panel, name in zip(panels.flat, names, strict=False):
            panel.plot(steps, columns[name], color="#1b6ca8", lw=1.2)
            panel.set_title(name.replace("_", " "), fontsize=9)
        for panel in list(panels.flat)[len(names) :]:
            panel.set_visible(False)
        figure.tight_layout()
        return _svg(figure)


def intervals(estimates: Mapping[str, tuple[float, float, float]], *, x: str) -> str:
    """(lower, value, upper) by name, as points with bars."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 0.5 * len(estimates) + 0.9))
        for row, (name, (lower, value, upper)) in enumerate(reversed(estimates.items())):
            axes.errorbar(
                value,
                row,
                xerr=[[max(value - lower, 0.0)], [max(upper - value, 0.0)]],
                fmt="o",
                capsize=4,
                color=_colour(name),
            )
        axes.set_yticks(range(len(estimates)), list(reversed(estimates)))
        axes.set_ylim(-0.6, len(estimates) - 0.4)
        axes.set_xlabel(x)
        return _svg(figure)


def heat(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """Weights by segment: each cell is coloured by its place within its head's interval [-1, 1]."""
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(0.85 * len(columns) + 2.0, 0.38 * len(rows) + 1.1))
        image = axes.imshow(values, cmap="RdYlBu_r", vmin=-1.0, vmax=1.0, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:+.2f}", ha="center", va="center", fontsize=7)
        figure.colorbar(image, ax=axes, fraction=0.03, label="action")
        return _svg(figure)
