"""Single bad rows of a day: they go to quarantine, and the day goes on, below a share that each check has.

Landing calls it before a partition is written, so that no later step meets these rows. Where one check's rows
are more than its share, nothing is set aside: validation then stops the day, with all of its rows there.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names

from datetime import date
from difflib import get_close_matches

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from training.contract.errors import SettingsError
from training.contract.settings import Settings
from training.validation.checks import Check
from training.validation.mended import RULES

REPEATED = "repeated_rows"
REASON = "reason"


def split(settings: Settings, table: str, day: date, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows that are to lie in the day, and those to be set aside, each with its ``reason``."""
    refuse_unknown_shares(settings, day)
    rules = RULES[table](settings, day)
    checks = [check for check in rules.checks if _stops(check)]
    keys = ", ".join(f'"{name}"' for name in rules.key)
    faults = [(str(check.column), str(check.bad), check.text) for check in checks]
    faults.append((REPEATED, "copies > 1", rules.key_text))
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        connection.register("landing_rows", rows)
        # counting copies is dear, and on most days there are none
        [(repeated,)] = connection.execute(
            f"select count(*) - count(distinct hash({keys})) from landing_rows"
        ).fetchall()
        copies = f"count(*) over (partition by {keys})" if repeated else "1"
        source = f"(select *, {copies} as copies from landing_rows)"
        counted = ", ".join(f"count(*) filter (where {bad})" for _, bad, _ in faults)
        [counts] = connection.execute(f"select {counted} from {source}").fetchall()
        found = [(fault, count) for fault, count in zip(faults, counts, strict=True) if count]
        if not found or any(count > _most(settings, field, rows.num_rows) for (field, *_), count in found):
            return rows, rows.slice(0, 0).append_column(REASON, pa.array([], pa.string()))
        cases = ", ".join(f"case when {bad} then '{_quoted(text)}' end" for (_, bad, text), _ in found)
        reasons = connection.sql(
            f"select 'expected: ' || nullif(concat_ws('; ', {cases}), '') as reason from {source}"
        ).to_arrow_table()[REASON]
    bad = pc.is_valid(reasons)
    aside = rows.append_column(REASON, reasons.cast(pa.string())).filter(bad)
    return rows.filter(pc.invert(bad)), aside


def refuse_unknown_shares(settings: Settings, day: date) -> None:
    """Raise :class:`SettingsError` for a share in ``validation.max_bad_shares`` of what no check has."""
    if not settings.validation.max_bad_shares:
        return
    rules = [made(settings, day) for made in RULES.values()]
    known = {REPEATED, *(str(check.column) for one in rules for check in one.checks if check.bad is not None)}
    for field in settings.validation.max_bad_shares:
        if field not in known:
            near = get_close_matches(field, known, 1, 0.0)[0]
            raise SettingsError(f"validation.max_bad_shares.{field}: no check has this field: is it {near}?")


def _stops(check: Check) -> bool:
    """Whether a single row that breaks it stops the day."""
    allowed = check.arguments.get("min_value") if "Proportion" in check.expectation else 1.0
    return check.severity == "critical" and check.bad is not None and allowed == 1.0


def _most(settings: Settings, field: str, rows: int) -> int:
    validation = settings.validation
    return int(validation.max_bad_shares.get(field, validation.max_bad_share) * rows)


def _quoted(text: str) -> str:
    return text.replace("'", "''")
