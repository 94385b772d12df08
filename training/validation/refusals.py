"""A landing that was refused, as a suite of its own: Data Docs show it beside what was landed and judged."""

from datetime import date
from typing import Any

import pandas as pd

from training.contract.errors import DataError
from training.contract.settings import Settings
from training.validation.checks import Suite, measure

LANDING = "landing"
# What a landing asks of a day's source, in the order in which it asks.
CONTRACT = {
    "delivered": "there is a log of the day",
    "readable": "every file can be read to its end, text as UTF-8",
    "columns": "every file has the columns that the contract requires",
    "types": "every value is of its column's type",
    "times": "every row has a time, of the delivery's day or of one before",
    "landed": "the log can be landed",
}


def refused(settings: Settings, day: date, error: DataError) -> dict[str, Any]:
    """The record of a landing that ``error`` refused, with its page in Data Docs.

    ``success`` is false, ``error`` the message; ``suites`` and ``data_docs`` as of
    :func:`training.validation.validate_landed`. What comes after the broken part of the contract was not
    asked, and is left out.
    """
    from training.validation import data_docs

    broken = error.breaks or "landed"
    asked = list(CONTRACT)[: list(CONTRACT).index(broken)] if broken != "landed" else []
    checks = [measure(name, CONTRACT[name], 0, 0) for name in asked]
    checks.append(measure(broken, f"{CONTRACT[broken]}: {error}", 0, 0))
    frame = pd.DataFrame([{**dict.fromkeys(asked, 0.0), broken: 1.0}])
    about = f"The landing of {day}: 0 where the source is as the contract asks, 1 where it was refused."
    layout = settings.layout
    [outcome] = data_docs.run(layout.validation, day, [Suite(LANDING, frame, checks, about)], [LANDING])
    failed = {
        "expectation": checks[-1].expectation,
        "column": broken,
        "field": broken,
        "severity": "critical",
        "observed": 1.0,
        "unexpected_count": None,
        "message": str(error),
    }
    suite = {"success": False, "evaluated": len(checks), "failed": [failed], "page": outcome.page}
    return {
        "success": False,
        "error": str(error),
        "suites": {LANDING: suite},
        "data_docs": f"{layout.validation.name}/data_docs/index.html",
    }
