"""Users who are forgotten: landing again, from whatever source, brings none of their rows back.

A user is noted by a salted hash, which names nobody, and by the instant up to which they are forgotten: what
they do later is another relation, and lands.
"""

import hashlib
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from training.contract.files import read_json, write_json_atomic
from training.contract.layout import Layout
from training.contract.log import Id


def remember(layout: Layout, user: Id, until: datetime) -> None:
    """Note that no row of the user from before an instant is to land; the caller holds the landing's lock."""
    known = _read(layout) or {"salt": secrets.token_hex(16), "until": {}}
    known["until"][_key(known["salt"], user)] = until.isoformat()
    write_json_atomic(_path(layout), known)


def without(layout: Layout, rows: pa.Table, time: str, at: datetime | None = None) -> pa.Table:
    """Rows to land, under the contract, without those of forgotten users.

    ``time`` is their column of it. ``at`` counts instead of it where it cannot be believed: rows that were
    known by then are of before it, whatever time they say.
    """
    known = _read(layout)
    if known is None:
        return rows
    for user in pc.unique(rows["user_id"]).to_pylist():
        until = known["until"].get(_key(known["salt"], user))
        if until is None:
            continue
        own, limit = pc.fill_null(pc.equal(rows["user_id"], user), False), datetime.fromisoformat(until)
        if at is None:
            before = pc.less(rows[time], pa.scalar(limit, rows.schema.field(time).type))
            own = pc.and_(own, pc.fill_null(before, True))
        if at is None or at <= limit:
            rows = rows.filter(pc.invert(own))
    return rows


def _path(layout: Layout) -> Path:
    return layout.root / "lake" / "forgotten.json"


def _read(layout: Layout) -> dict[str, Any] | None:
    path = _path(layout)
    return read_json(path) if path.exists() else None


def _key(salt: str, user: Id) -> str:
    return hashlib.sha256(f"{salt}/{user}".encode()).hexdigest()
