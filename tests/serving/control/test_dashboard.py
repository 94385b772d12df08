"""The Grafana dashboard asks for what the service exports, and nothing that it exports is forgotten."""

import json
import re
from pathlib import Path

from prometheus_client import Counter, Histogram

from serving.control import metrics
from training.contract.log import FALLBACKS

DASHBOARD = json.loads((Path(metrics.__file__).parent / "grafana" / "dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exported() -> dict[str, tuple[str, ...]]:
    """Labels of every sample that the service's metrics may have, by its name."""
    names: dict[str, tuple[str, ...]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, Counter):
            names[f"{metric._name}_total"] = metric._labelnames
        elif isinstance(metric, Histogram):
            names[f"{metric._name}_bucket"] = (*metric._labelnames, "le")
            names[f"{metric._name}_sum"] = names[f"{metric._name}_count"] = metric._labelnames
        elif hasattr(metric, "_labelnames") and hasattr(metric, "_name"):
            names[metric._name] = metric._labelnames
    return names


def test_every_query_names_metrics_and_labels_that_the_service_exports():
    known = exported()
    for expression in EXPRESSIONS:
        asked = re.findall(r"\bmtf_\w+", expression)
        assert asked and set(asked) <= known.keys(), expression
        labels = set(re.findall(r"[{,]\s*(\w+)\s*[=!]", expression))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            labels |= {label.strip() for label in group.split(",")}
        assert labels <= set().union(*(known[name] for name in asked)), expression


def test_every_metric_is_on_the_dashboard():
    asked = {name for expression in EXPRESSIONS for name in re.findall(r"\bmtf_\w+", expression)}
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in exported()} == shown


def test_panels_have_their_own_place_and_number():
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len({p["id"] for p in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_fallbacks_have_names_of_their_own():
    assert len(set(FALLBACKS)) == len(FALLBACKS) and "none" not in FALLBACKS
