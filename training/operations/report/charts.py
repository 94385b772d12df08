"""Charts of the day's page, as inline SVG so that a page is one file that can be sent around."""

import html
import io
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

Ends = tuple[float, float, float]  # lower, value and upper
COLOURS = {
    "champion": "#1b6ca8",
    "challenger": "#7a3e9d",
    "static": "#6b7280",
    "random": "#c2571a",
    "noise": "#2f855a",
}
OTHERS = ("#1b6ca8", "#c2571a", "#2f855a", "#7a3e9d", "#6b7280", "#b7791f", "#9b2c5e", "#1f2937")
# colour alone tells nobody who cannot see it
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
STYLE: "dict[RcKeyType, Any]" = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "svg.hashsalt": "mtf",  # equal figures give equal bytes
}


def _svg(figure: Figure, about: str) -> str:
    """The figure as an inline element that a screen reader announces as ``about``."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    label = html.escape(about, quote=True)
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _colour(name: str) -> str:
    return COLOURS.get(name, "#374151")


def lines(
    series: Mapping[str, tuple[Sequence[Any], Sequence[float]]],
    *,
    x: str,
    y: str,
    about: str,
    limits: Mapping[str, float] | None = None,
    bars: Mapping[str, Sequence[tuple[float, float] | None]] | None = None,
) -> str:
    """One line per name: (xs, ys), over all that any has, in order; ``limits`` are level lines by name, and
    ``bars`` the (lower, upper) of each point where it has them.

    An x that is a date is written as month and day.
    """
    places = {
        value: n for n, value in enumerate(sorted({value for xs, _ in series.values() for value in xs}))
    }
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.8, 2.6))
        for n, (name, (xs, ys)) in enumerate(series.items()):
            few = len(xs) < 15
            # bars of one x beside each other
            aside = 0.12 * (n - (len(series) - 1) / 2.0) if bars else 0.0
            at = [places[value] + aside for value in xs]
            known = [
                (place, *ends)
                for place, ends in zip(at, (bars or {}).get(name, ()), strict=False)
                if ends is not None
            ]
            if known:
                axes.vlines(
                    *zip(*known, strict=True), color=COLOURS.get(name, OTHERS[n % len(OTHERS)]), lw=0.9
                )
            axes.plot(
                at,
                ys,
                marker=MARKERS[n % len(MARKERS)] if few else None,
                ms=4,
                label=name,
                color=COLOURS.get(name, OTHERS[n % len(OTHERS)]),
                linestyle=DASHES[n % len(DASHES)] if len(series) > 1 else "-",
            )
        for name, level in (limits or {}).items():
            axes.axhline(level, color="#991b1b", lw=0.8, ls=":")
            axes.annotate(name, (0, level), fontsize=7, color="#991b1b", va="bottom")
        step = max(1, -(-len(places) // 10))
        shown = list(places)[::step]
        turned = isinstance(shown[0], date)
        axes.set_xticks(
            [places[v] for v in shown],
            [f"{v:%m-%d}" for v in shown] if turned else shown,
            rotation=45 if turned else 0,
            ha="right" if turned else "center",
        )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if len(series) > 1:
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        return _svg(figure, about)


def multiples(
    panels: Mapping[str, tuple[Sequence[date], Sequence[Mapping[str, Any]]]],
    *,
    about: str,
    levels: Mapping[str, float] | None = None,
    level: str = "",
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Small multiples over days, one panel a name: means with intervals, a level line named ``level``, and
    the range of the panel."""
    names = list(panels)
    days = sorted({day for xs, _ in panels.values() for day in xs})
    with plt.rc_context(STYLE):
        across = min(len(names), 4)
        down = -(-len(names) // across)
        figure, grid = plt.subplots(
            down, across, figsize=(2.4 * across, 1.6 * down), squeeze=False, sharex=True
        )
        for panel, name in zip(grid.flat, names, strict=False):
            xs, means = panels[name]
            at = [days.index(day) for day in xs]
            panel.plot(at, [one["value"] for one in means], "o-", ms=2.5, lw=1.2, color=COLOURS["champion"])
            known = [(place, one) for place, one in zip(at, means, strict=True) if one["lower"] is not None]
            panel.vlines(
                [place for place, _ in known],
                [one["lower"] for _, one in known],
                [one["upper"] for _, one in known],
                color=COLOURS["champion"],
                lw=1.0,
            )
            if levels and name in levels:
                panel.axhline(levels[name], color=COLOURS["static"], lw=0.9, ls="--")
            if ranges and name in ranges:
                low, high = ranges[name]
                panel.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
            panel.set_title(name.replace("_", " "), fontsize=9)
            step = max(1, -(-len(days) // 4))
            panel.set_xticks(range(0, len(days), step), [f"{day:%m-%d}" for day in days[::step]], fontsize=7)
            panel.tick_params(axis="y", labelsize=7)
        for panel in list(grid.flat)[len(names) :]:
            panel.set_visible(False)
        if levels:
            figure.text(
                0.99, 0.0, f"dashed: {level}", ha="right", va="top", fontsize=8, color=COLOURS["static"]
            )
        figure.subplots_adjust(hspace=0.45, wspace=0.35)
        return _svg(figure, about)


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
        return _svg(figure, "Curves of the training by step: " + ", ".join(names))


def intervals(
    estimates: Mapping[str, tuple[float, float, float]], *, x: str, about: str, zero: bool = False
) -> str:
    """(lower, value, upper) by name, as points with bars; with a line at ``zero``."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 0.5 * len(estimates) + 0.9))
        for row, (name, (lower, value, upper)) in enumerate(list(estimates.items())[::-1]):
            axes.errorbar(
                value,
                row,
                xerr=[[max(value - lower, 0.0)], [max(upper - value, 0.0)]],
                fmt="o",
                capsize=4,
                color=_colour(name),
            )
        if zero:
            axes.axvline(0.0, color=COLOURS["static"], lw=0.9, ls="--")
        axes.set_yticks(range(len(estimates)), list(estimates)[::-1])
        axes.set_ylim(-0.6, len(estimates) - 0.4)
        axes.set_xlabel(x)
        return _svg(figure, about)


def plane(
    points: Mapping[str, tuple[Ends, Ends]],
    path: Sequence[str],
    *,
    told: Sequence[str],
    origin: str,
    x: str,
    y: str,
    about: str,
) -> str:
    """Points with bars by name, (x, y) of each as (lower, value, upper); ``origin`` is the name of (0, 0).

    Those in ``path`` are joined in its order, and named there where ``told``; the others are in the legend.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.4, 3.6))
        axes.axhline(0.0, color="#9ca3af", lw=0.8)
        axes.axvline(0.0, color="#9ca3af", lw=0.8)
        axes.plot(0.0, 0.0, MARKERS[4], ms=8, color=_colour("static"), label=origin)
        for name, ((left, across, right), (low, up, high)) in points.items():
            on_path = name in path
            axes.errorbar(
                across,
                up,
                xerr=[[across - left], [right - across]],
                yerr=[[up - low], [high - up]],
                fmt="o" if on_path else MARKERS[5],
                ms=4 if on_path else 8,
                lw=0.6,
                capsize=2,
                color=COLOURS["challenger"] if on_path else _colour(name),
                label=None if on_path else name,
            )
            if name in told:
                axes.annotate(f"x{name}", (across, up), xytext=(5, 4), textcoords="offset points", fontsize=8)
        joined = [(points[name][0][1], points[name][1][1]) for name in path]
        axes.plot(*zip(*joined, strict=True), color=COLOURS["challenger"], lw=1.2, label="interaction x …")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)
        return _svg(figure, about)


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    told: Sequence[Sequence[float]],
) -> str:
    """Weights by segment, ``told``: a cell is coloured by its place within its head's interval, [-1, 1]."""
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(0.85 * len(columns) + 2.0, 0.38 * len(rows) + 1.1))
        image = axes.imshow(values, cmap="RdYlBu_r", vmin=-1.0, vmax=1.0, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                ink = "white" if abs(value) > 0.6 else "black"  # the ends of the scale are dark
                axes.text(j, i, f"{told[i][j]:.2f}", ha="center", va="center", fontsize=7, color=ink)
        figure.colorbar(image, ax=axes, fraction=0.03, label="place between its bounds", ticks=[-1, 0, 1])
        return _svg(figure, "The challenger's mean fusion weights by user segment and head")
