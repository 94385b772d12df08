"""What is in service, read and changed by everybody through here.

It lies in files of the data folder; with ``serving.index: redis`` it is one versioned row, beside the index
that the replicas share.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from training.contract.in_service.files import Files
from training.contract.in_service.value import PARTS, Event, InService
from training.contract.settings import Settings

__all__ = ["PARTS", "Event", "InService", "as_files", "changing", "read"]


class _Store(Protocol):
    def read(self) -> InService: ...

    def held(self) -> AbstractContextManager[None]:
        """Against other changes, where these wait for one another."""

    def write(self, row: InService, fence: int | None) -> None: ...


def read(settings: Settings) -> InService:
    """As it is now. Raises :class:`InServiceError` where that is not known; no part has been looked at."""
    return _store(settings).read()


@contextmanager
def changing(settings: Settings, fence: int | None = None) -> Iterator[InService]:
    """What is changed of the value inside is written as one at the end, and nothing where the block raises.

    The service, the daily loop and people change it; not reentrant. ``fence`` is the number of the
    guardrail's lease. Raises :class:`InServiceError` where somebody changed it meanwhile, or has the lease
    by now (nothing has changed then, and another try begins from what is there), and where Redis is silent.
    """
    store = _store(settings)
    with store.held():
        row = store.read()
        yield row
        if row.changes or row.added:
            store.write(row, fence)


def as_files(settings: Settings) -> dict[Path, str | None]:
    """Of a row, what each file of the data folder has to say (None: it is not there) for the row to begin
    anew from them; nothing where files are what is read."""
    if settings.serving.index == "file":
        return {}
    row, layout = read(settings), settings.layout
    history = "".join(f"{line}\n" for line in row.lines)
    parts = {getattr(layout, part): row.text(part) for part in PARTS}
    return {**parts, layout.history: history or None, layout.in_redis: None}


def _store(settings: Settings) -> _Store:
    if settings.serving.index == "file":
        return Files(settings)
    from training.contract.in_service.row import row_of  # imported where replicas share: it takes Redis

    return row_of(settings)
