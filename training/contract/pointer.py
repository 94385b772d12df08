"""A pointer, the champion's or the challenger's: the small file through which a policy comes to be served."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.contract.errors import PolicyError
from training.contract.files import read_json, write_json_atomic


@dataclass(frozen=True)
class PolicyPointer:
    """What is to be served. ``policy`` is the path of its file relative to the data folder.

    ``previous`` is the pointer that this one replaced, as a dictionary, so that one rollback needs
    nothing but this file; ``model_version`` is the version in the MLflow registry.
    """

    policy: str
    sha256: str
    version: str
    day: str
    model_version: str
    promoted_ts: str
    previous: dict[str, Any] | None = None


def previous(pointer: PolicyPointer) -> PolicyPointer | None:
    """The one that it replaced, or None for the first."""
    return None if pointer.previous is None else PolicyPointer(**pointer.previous)


def chain(pointer: PolicyPointer | None) -> Iterator[PolicyPointer]:
    """It and those before it that it remembers, newest first."""
    while pointer is not None:
        yield pointer
        pointer = previous(pointer)


def read_pointer(path: Path) -> PolicyPointer | None:
    """The pointer, or None before the first promotion. :class:`PolicyError` when it is broken."""
    try:
        return PolicyPointer(**read_json(path))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise PolicyError(f"{path} is not a pointer to a policy: {error}") from error


def write_pointer(path: Path, pointer: PolicyPointer) -> None:
    write_json_atomic(path, asdict(pointer))
