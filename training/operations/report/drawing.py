"""The templates of the pages, and how they write a number."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)


def interval(mean: Mapping[str, Any] | None, places: int = 3, sign: bool = False) -> str:
    """A mean with its interval: "24.4 (22.5 to 26.4)"."""
    if mean is None:
        return "-"
    form = f"{'+' if sign else ''}.{places}f"
    value = format(mean["value"], form)
    if mean.get("lower") is None:
        return f"{value} (of one user)"
    return f"{value} ({mean['lower']:{form}} to {mean['upper']:{form}})"


def percent(mean: Mapping[str, Any] | None, places: int = 2) -> str:
    """A share with its interval, in per cent."""
    if mean is None:
        return "-"
    scaled = {end: None if mean[end] is None else 100.0 * mean[end] for end in ("value", "lower", "upper")}
    return f"{interval(scaled, places)} %"


templates.filters |= {"interval": interval, "percent": percent}
