"""A day of the service's log from the object store, into the log's own folder.

Replicas ship their files (:mod:`training.contract.shipped`); here they are brought under the names that they
had, each held against the hash in its manifest, and landed as files of this machine are. What was brought
stays there, for late rows and for landing again, until retention removes it.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path

from training.contract import shipped
from training.contract.errors import DataError, ObjectStoreError
from training.contract.files import sha256, write_atomic
from training.contract.log import LATE_DAYS
from training.contract.object_store import ObjectStore, object_store
from training.contract.settings import Settings
from training.contract.shipped import Manifest, Part


def bring(settings: Settings, day: date) -> None:
    """Bring the files of ``day``, and those of the days around it of which late rows of it, or in it, can be.

    Raises :class:`DataError` while a replica in service has not shipped the day whole, and for an object that
    is not what its manifest says; :class:`ObjectStoreError` when the store does not answer.
    """
    store = object_store(settings.serving.ship)
    around = [day + timedelta(days=n) for n in range(-LATE_DAYS, LATE_DAYS + 1)]
    found = _manifests(settings, store, around)
    _refuse_silent(settings, store, day, {one.replica: one for one in found if one.day == day})
    for manifest in found:
        for part in manifest.parts:
            _bring_part(settings, store, manifest, part)


def manifests(settings: Settings, day: date) -> list[Path]:
    """What was said of a day when the store last answered, in files of this machine; asks it first."""
    with suppress(ObjectStoreError):
        _manifests(settings, object_store(settings.serving.ship), [day])
    return sorted(settings.layout.shipped.glob(f"*/{day}.*"))


def _manifests(settings: Settings, store: ObjectStore, days: Iterable[date]) -> list[Manifest]:
    """The manifests of all replicas of some days, each kept as a file, and the days' retired replicas."""
    found = []
    for replica in shipped.replicas(store):
        there = set(shipped.days_of(store, replica))
        gone = shipped.retired_from(store, replica) if there else None
        for day in days:
            folder = settings.layout.shipped / replica
            if day in there and (manifest := shipped.read_manifest(store, replica, day)) is not None:
                found.append(manifest)
                _keep(folder / f"{day}.json", shipped.encoded(manifest))
            if gone is not None and gone <= day:
                _keep(folder / f"{day}.retired", b"")
            else:
                (folder / f"{day}.retired").unlink(missing_ok=True)
    return found


def _keep(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, lambda temporary: temporary.write_bytes(content))


def _refuse_silent(settings: Settings, store: ObjectStore, day: date, said: dict[str, Manifest]) -> None:
    """:class:`DataError` for a replica in service that may have more of the day than the store has."""
    for replica in shipped.replicas(store):
        if replica in said and said[replica].final:
            continue
        if not any(one <= day for one in shipped.days_of(store, replica)):
            continue  # it began later
        gone = shipped.retired_from(store, replica)
        if gone is None or gone > day:
            files = len(said[replica].parts) if replica in said else 0
            raise DataError(
                f"replica {replica!r} has not shipped its log of {day} whole (files there: {files}): start "
                "it, or run `mtf ship` on its machine; if it is lost, or was taken out of service, `mtf ship "
                f"--retire {replica}` has the day landed with what is there, and no more of it expected",
                breaks="delivered",
            )


def _bring_part(settings: Settings, store: ObjectStore, manifest: Manifest, part: Part) -> None:
    """A file of the same name and size is it: names are drawn, and files of the log are never changed but by
    `mtf forget`, which keeps their sizes."""
    path = settings.layout.serving_log / part.kind / part.file
    if path.exists() and path.stat().st_size == part.size:
        return

    def take(temporary: Path) -> None:
        store.get(manifest.key(part), temporary)
        if (digest := sha256(temporary)) != part.sha256:
            raise DataError(
                f"{store.where}: {manifest.key(part)} is not what was shipped: it has the hash {digest}. "
                f"On the machine of replica {manifest.replica!r}, `mtf ship --again {manifest.day}` puts it "
                "there anew",
                breaks="readable",
            )

    write_atomic(path, take)
