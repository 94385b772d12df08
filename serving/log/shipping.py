"""How does a closed file of the log get to an object store? Hashed, put there, named in the day's manifest.

The service does not wait for it: a line is durable when it is on the replica's own disk. What is shipped
is what the manifests in the store say (:mod:`training.contract.shipped`), so a shipper that was killed,
wherever, begins again where they end.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import structlog

from serving.log.day_files import closed_size
from training.contract import shipped
from training.contract.errors import DataError, SettingsError
from training.contract.files import locked, sha256
from training.contract.log import LINES, day_of, worker_of
from training.contract.object_store import ObjectStore, object_store
from training.contract.settings import Settings
from training.contract.shipped import Manifest, Part

_log = structlog.get_logger("mtf.serving.shipping")
# after midnight, until when a line of the day before may still be on its way to the disk
GRACE = timedelta(minutes=2)


class Behind(NamedTuple):
    """Files that are not in the store: how many are closed and how many written, the bytes of the closed, and
    the seconds since the oldest of these was last written."""

    files: int = 0
    written: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Shipper:
    """Ships the files of ``serving.replica``. For one thread; other processes are kept out by a lock.

    Raises :class:`SettingsError` for a replica without a name.
    """

    def __init__(
        self,
        settings: Settings,
        told: Callable[[Behind, bool], None] = lambda behind, failed: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings, self._ship, self.replica = settings, settings.serving.ship, settings.serving.replica
        self._folder, self._told, self._now = settings.layout.serving_log, told, now
        if not self.replica:
            raise SettingsError(
                "serving.replica: is empty, and serving.ship.to ships under that name: give one"
            )
        self._store: ObjectStore | None = None
        self._known: dict[date, Manifest | None] = {}  # as they are in the store
        self._in_service = self._failing = False

    def look(self) -> None:
        """Ship what is closed, and tell how far behind the store is; for the service, which goes on."""
        try:
            if not self._in_service:
                shipped.take_back(self._opened(), self.replica)
                self._in_service = True
            self.ship()
            if self._failing:
                _log.info("the object store has what was missing")
            self._failing = False
        except BlockingIOError:  # another worker does
            self._told(Behind(), False)
            return
        except (OSError, DataError) as error:
            self._failing = True
            behind = self.behind()
            _log.error("the log is not shipped", reason=str(error), **behind._asdict())
            self._told(behind, True)
            return
        self._told(self.behind(), False)

    def ship(self, anew: date | None = None) -> int:
        """Ship every closed file, and the manifests of all days since the last one; how many files it took.

        ``anew``: put the files of this day there again, whatever the store says. Raises
        :class:`ObjectStoreError`, :class:`DataError` for a manifest that is broken, and
        :class:`BlockingIOError` while another process ships.
        """
        with locked(self._folder / f".ship.{self.replica}.lock", wait=False):
            store, today, files = self._opened(), self._today(), self._files()
            since = first_not_whole(store, self.replica) or today
            unsaid = [since + timedelta(days=ahead) for ahead in range((today - since).days + 1)]
            count = 0
            for day in sorted({*files, *unsaid}):
                count += self._day(store, day, files.get(day, []), anew=day == anew)
            self._clear(files)
            return count

    def behind(self) -> Behind:
        """By what is known of the store."""
        now, waiting, written = self._now().timestamp(), list[Path](), 0
        for day, paths in self._files().items():
            for path in self._missing(day, paths):
                if closed_size(path) is None:
                    written += 1
                else:
                    waiting.append(path)
        stats = [path.stat() for path in waiting]
        seconds = max((now - stat.st_mtime for stat in stats), default=0.0)
        return Behind(len(stats), written, sum(stat.st_size for stat in stats), max(seconds, 0.0))

    def _day(self, store: ObjectStore, day: date, paths: list[Path], anew: bool) -> int:
        """One day's files, then its manifest, where it says more than the one that is there."""
        if day not in self._known:
            self._known[day] = shipped.read_manifest(store, self.replica, day)
        waiting = paths if anew else self._missing(day, paths)
        closed = [path for path in waiting if closed_size(path) is not None]
        final = len(closed) == len(waiting) and self._now() >= self._end(day) + GRACE
        parts = [self._put(store, day, path, anew) for path in closed]
        known = self._known[day]
        if parts or known is None or (final and not known.final):
            # read again: `mtf forget` may have written it meanwhile, or another worker
            there = shipped.read_manifest(store, self.replica, day)
            self._known[day] = said = (there or Manifest(self.replica, day)).with_parts(parts, final)
            if said != there:
                shipped.write_manifest(store, said)
        return len(parts)

    def _put(self, store: ObjectStore, day: date, path: Path, anew: bool) -> Part:
        part = Part(path.parent.name, path.name, path.stat().st_size, sha256(path))
        key = Manifest(self.replica, day).key(part)
        if anew or store.size(key) != part.size:
            store.put(key, path)
        return part

    def _missing(self, day: date, paths: list[Path]) -> list[Path]:
        known = self._known.get(day)
        there = {(part.kind, part.file) for part in known.parts} if known else set()
        return [path for path in paths if (path.parent.name, path.name) not in there]

    def _files(self) -> dict[date, list[Path]]:
        """This replica's files that have lines, by day, in the order of their names."""
        found: dict[date, list[Path]] = {}
        for kind in LINES:
            for path in sorted((self._folder / kind).glob("*.jsonl")):
                if worker_of(path).rpartition("@")[0] == self.replica and path.stat().st_size:
                    found.setdefault(day_of(path), []).append(path)
        return found

    def _clear(self, files: dict[date, list[Path]]) -> None:
        """Remove files that are in the store, of days that are whole, and that no feedback asks for."""
        before = self._now().timestamp() - self._ship.keep_days * 86_400.0
        for day, paths in files.items():
            known = self._known[day]
            if known is not None and known.final:
                missing = self._missing(day, paths)
                for path in paths:
                    # by when it was written: replayed traffic may be of any day
                    if path not in missing and path.stat().st_mtime <= before:
                        path.unlink(missing_ok=True)

    def _opened(self) -> ObjectStore:
        if self._store is None:
            self._store = object_store(self._ship)
        return self._store

    def _today(self) -> date:
        return self._now().astimezone(self._settings.calendar.zone).date()

    def _end(self, day: date) -> datetime:
        return self._settings.day_start(day + timedelta(days=1))


def retire(store: ObjectStore, replica: str) -> date:
    """Say that a replica is out of service: it has no log from the first day on that is not whole, which is
    returned. Raises :class:`ObjectStoreError`, and :class:`DataError` for one that has shipped nothing."""
    day = first_not_whole(store, replica)
    if day is None:
        known = [name for name in shipped.replicas(store) if shipped.days_of(store, name)]
        raise DataError(
            f"{store.where} has no log of a replica {replica!r}: there are {', '.join(known) or 'none'}"
        )
    shipped.retire(store, replica, day)
    return day


def first_not_whole(store: ObjectStore, replica: str) -> date | None:
    """The day after the last one that a replica has shipped whole, or its first one; None: it has none."""
    days = shipped.days_of(store, replica)
    for day in reversed(days):
        manifest = shipped.read_manifest(store, replica, day)
        if manifest is not None and manifest.final:
            return day + timedelta(days=1)
    return days[0] if days else None
