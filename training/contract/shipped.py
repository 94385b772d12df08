"""What a replica has shipped of its log: objects named by their content, and a manifest a day.

Below the store's place is ``<replica>/<day>/manifest.json``, and beside it ``<sha256>.jsonl`` for each file
of the log. A manifest is written after its objects, in one piece, so it names none that is not there. One
that is ``final`` says that the day is over for the replica and its files are all in it. Of a replica that was
taken out of service, ``<replica>/retired.json`` names the day from which on it has no log. Policies lie
beside them (:mod:`training.contract.in_service.policies`).
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

from training.contract.errors import DataError
from training.contract.object_store import ObjectStore

POLICIES = "policies.sha256"  # beside the replicas, none of which can have a point in its name
_MANIFEST, _RETIRED = "manifest.json", "retired.json"
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Part:
    """A file of the log: its ``kind`` (decisions, feedback), its name there, bytes, and hex SHA-256."""

    kind: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Parts are in the order in which they were shipped."""

    replica: str
    day: date
    final: bool = False
    parts: tuple[Part, ...] = ()

    def with_parts(self, parts: Iterable[Part], final: bool) -> "Manifest":
        """With these, in the place of those of the same files; final stays final."""
        fresh = {(part.kind, part.file): part for part in parts}
        kept = [fresh.pop((part.kind, part.file), part) for part in self.parts]
        return replace(self, final=self.final or final, parts=(*kept, *fresh.values()))

    def key(self, part: Part) -> str:
        """Of a part's object."""
        return f"{self.replica}/{self.day}/{part.sha256}.jsonl"


def replicas(store: ObjectStore) -> list[str]:
    """Whoever has shipped anything, ever; and what else lies there."""
    return [name for name in store.names() if name != POLICIES]


def days_of(store: ObjectStore, replica: str) -> list[date]:
    """Days that a replica has shipped, oldest first."""
    return sorted(date.fromisoformat(name) for name in store.names(replica) if _DAY.fullmatch(name))


def read_manifest(store: ObjectStore, replica: str, day: date) -> Manifest | None:
    """None where there is none. Raises :class:`DataError` for one that is broken."""
    key = f"{replica}/{day}/{_MANIFEST}"
    content = store.read(key)
    if content is None:
        return None
    try:
        said = json.loads(content)
        parts = tuple(Part(**part) for part in said["parts"])
        return Manifest(said["replica"], date.fromisoformat(said["day"]), bool(said["final"]), parts)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{store.where}: {key} is no manifest ({error}): remove it, and run `mtf ship`"
        ) from None


def encoded(manifest: Manifest) -> bytes:
    """Equal manifests give equal bytes."""
    said: dict[str, Any] = {**asdict(manifest), "day": manifest.day.isoformat()}
    return (json.dumps(said, indent=1, sort_keys=True) + "\n").encode()


def write_manifest(store: ObjectStore, manifest: Manifest) -> None:
    store.put(f"{manifest.replica}/{manifest.day}/{_MANIFEST}", encoded(manifest))


def retired_from(store: ObjectStore, replica: str) -> date | None:
    """The first day of which a replica has no log, or none that is whole; None while it is in service."""
    content = store.read(f"{replica}/{_RETIRED}")
    return None if content is None else date.fromisoformat(json.loads(content)["from"])


def retire(store: ObjectStore, replica: str, day: date) -> None:
    store.put(f"{replica}/{_RETIRED}", json.dumps({"from": day.isoformat()}).encode())


def take_back(store: ObjectStore, replica: str) -> None:
    """A replica is in service again."""
    store.remove(f"{replica}/{_RETIRED}")
