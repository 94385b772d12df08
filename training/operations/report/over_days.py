"""Charts over days, and the numbers of each day behind them."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from training.contract.log import CHAMPION, STATIC, STATIC_VERSION
from training.contract.records import read_record
from training.contract.settings import Settings
from training.operations.report import charts, facts

Days = Mapping[date, Mapping[str, Any]]  # facts of each day that has some


def known(settings: Settings, days: Sequence[date]) -> dict[date, dict[str, Any]]:
    found = {day: facts.of_day(settings, day) for day in days}
    return {day: one for day, one in found.items() if one is not None}


def by_arm(day: Mapping[str, Any], arm: str) -> Mapping[str, Any] | None:
    """The arm's policy of most requests on the day."""
    rows = [row for row in day["arms"] if row["arm"] == arm]
    return max(rows, key=lambda row: row.get("requests", 0)) if rows else None


def returns(days: Days) -> str | None:
    """Mean session return by arm, with intervals."""
    series: dict[str, tuple[list[date], list[float]]] = {}
    bars: dict[str, list[tuple[float, float] | None]] = {}
    for day, found in days.items():
        for arm in dict.fromkeys(row["arm"] for row in found["arms"]):
            one = (by_arm(found, arm) or {}).get("session_return")
            if one is None:
                continue
            xs, ys = series.setdefault(arm, ([], []))
            xs.append(day)
            ys.append(one["value"])
            bars.setdefault(arm, []).append(_ends(one))
    if not series:
        return None
    about = "Mean session return by arm and day, with 95 % intervals"
    return charts.lines(series, x="day", y="session return", about=about, bars=bars)


def differences(days: Days) -> dict[date, facts.Mean]:
    """Session return of the champion's policy less that of static weights, on days when one served."""
    found = {}
    for day, one in days.items():
        mine, static = by_arm(one, CHAMPION), by_arm(one, STATIC)
        if mine is None or static is None or mine["version"] in (STATIC_VERSION, facts.UNKNOWN):
            continue
        if mine.get("session_return") and static.get("session_return"):
            found[day] = facts.difference(mine["session_return"], static["session_return"])
    return found


def gain(days: Days) -> str | None:
    found = differences(days)
    if not found:
        return None
    return charts.lines(
        {"champion": (list(found), [one["value"] for one in found.values()])},
        x="day",
        y="session return, champion - static",
        about="Session return of the champion's users less that of static weights' by day, 95 % intervals",
        limits={"as static weights": 0.0},
        bars={"champion": [_ends(one) for one in found.values()]},
    )


def weights(settings: Settings, days: Days) -> str | None:
    """Fusion weights that the champion's users were served, by head."""
    panels: dict[str, tuple[list[date], list[Mapping[str, Any]]]] = {}
    for day, found in days.items():
        for name, one in ((by_arm(found, CHAMPION) or {}).get("weights") or {}).items():
            xs, means = panels.setdefault(name, ([], []))
            xs.append(day)
            means.append(one)
    if not panels:
        return None
    static = {head.name: head.static for head in settings.heads}
    about = "Mean fusion weight of each head that the champion's users were served, by day"
    ranges = {head.name: (head.low, head.high) for head in settings.heads}
    return charts.multiples(panels, about=about, levels=static, level="static weights", ranges=ranges)


def signals(days: Days) -> str | None:
    """Rates of the signals by day."""
    panels: dict[str, tuple[list[date], list[Mapping[str, Any]]]] = {}
    for day, found in days.items():
        for name, one in found["signals"].items():
            if one is not None:
                xs, means = panels.setdefault(name, ([], []))
                xs.append(day)
                means.append(one)
    return (
        charts.multiples(panels, about="Rate of each signal by day, with 95 % intervals") if panels else None
    )


def _ends(one: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if one["lower"] is None else (one["lower"], one["upper"])


def drift(settings: Settings, days: list[date]) -> str | None:
    """Stability index of each head over the days."""
    series: dict[str, tuple[list[date], list[float]]] = {}
    for day in days:
        heads = (read_record(settings.layout, day, "drift") or {}).get("heads", {})
        for name, head in heads.items():
            if "psi" in head:
                xs, ys = series.setdefault(name.removeprefix("p_"), ([], []))
                xs.append(day)
                ys.append(head["psi"])
    if not series:
        return None
    limits = {"warns": settings.validation.warn_psi, "drift": settings.validation.max_psi}
    about = "Population stability index of each head's scores by day"
    return charts.lines(series, x="day", y="PSI", about=about, limits=limits)


def volumes(settings: Settings, days: list[date]) -> str | None:
    found = {d: read_record(settings.layout, d, "land") for d in days}
    rows = {
        d: r["tables"]["impressions"]["rows"]
        for d, r in found.items()
        if r and "impressions" in r.get("tables", {})
    }
    if not rows:
        return None
    return charts.lines(
        {"impressions": (list(rows), list(rows.values()))},
        x="day",
        y="impressions landed",
        about="Impressions landed by day",
    )
