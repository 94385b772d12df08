"""Taking a user out of the data folder, as far as its rooms hold them: lake, tables, features, records.

What is at rest of a user elsewhere, the service's log, is :mod:`serving.log.forgetting`'s.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from training.contract.errors import MtfError
from training.contract.files import write_atomic
from training.contract.layout import IMPRESSIONS
from training.contract.log import Id
from training.contract.settings import Settings
from training.features import forgetting as features
from training.ingest import forgetting as lake
from training.ingest import forgotten
from training.ingest.landing import landing_lock_file
from training.operations.backup import locks_held
from training.warehouse import forgetting as tables
from training.warehouse.days import transformed

# folders of what is said of days, in which a message may name a user
_TOLD = ("runs", "reports", "validation", "logs", "lineage", "metrics", "airflow", "warehouse/dbt_target")
_TEXTS = {".json", ".jsonl", ".html", ".txt", ".log", ".md", ".csv", ".prom", ".sql", ".yml"}
_LEAST = 12  # characters of an id of letters and digits that is nothing else, wherever it stands
TOLD = "forgotten"


def forget(settings: Settings, user: Id, log: Callable[[], int]) -> dict[str, int]:
    """Take a user out of everything at rest; how many ``lines``, ``lake`` rows, ``tables`` rows,
    ``features`` and ``texts`` there were. ``log`` takes them out of the service's log.

    The sources go first, and what is made of them after: killed anywhere, it is to be run again. Landing
    again brings no row of theirs from before now (:mod:`training.ingest.forgotten`). What the tables hold of
    all users together is to be made anew (:func:`made_anew`). Raises :class:`MtfError`, and changes nothing,
    while something of the folder is written.
    """
    layout = settings.layout
    if not layout.root.is_dir():
        raise MtfError(f"there is no data folder {layout.root}")
    with locks_held(layout, landing_lock_file(layout)):
        found = {"lines": log()}
        forgotten.remember(layout, user, datetime.now(UTC))
        found["lake"] = lake.forget(settings, user)
        found["tables"] = tables.forget(settings, user)
        found["features"] = features.forget(settings, user)
        found["texts"] = sum(_forget_in_text(path, user) for path in _texts(layout.root))
    return found


def made_anew(settings: Settings) -> bool:
    """Make the tables of the lake as it is without the user, where some were made; whether it was needed."""
    from training.warehouse import transform

    done = transformed(settings)["days"]
    days = [day for day in settings.layout.days(IMPRESSIONS) if day.isoformat() in done]
    if not days or not transform.pending(settings, days[-1]):
        return False
    transform.run(settings, days[-1])
    return True


def _texts(root: Path) -> list[Path]:
    return sorted(
        path
        for folder in _TOLD
        for path in (root / folder).rglob("*")
        if path.suffix in _TEXTS and path.is_file() and not path.is_symlink()
    )


def _forget_in_text(path: Path, user: Id) -> bool:
    """Blacken the user's id where a text says that it is one, and a long one wherever it stands."""
    text, own = path.read_bytes(), re.escape(str(user).encode())
    if str(user).encode() not in text:
        return False
    named = rb"(user_id(?:&#34;|&quot;|[^\w]){1,6}?)"
    changed = re.sub(
        named + own + rb"(?![\w-])", rb"\1null" if isinstance(user, int) else rb"\1forgotten", text
    )
    if isinstance(user, str) and len(user) >= _LEAST and not user.isdigit():
        changed = re.sub(rb"(?<![\w-])" + own + rb"(?![\w-])", TOLD.encode(), changed)
    if changed == text:
        return False
    write_atomic(path, lambda temporary: temporary.write_bytes(changed), path.stat().st_mode & 0o777)
    return True
