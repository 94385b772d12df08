"""The champion pointer: the small file through which a promotion reaches a running service."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.contract.errors import PolicyError
from training.contract.files import read_json, write_json_atomic


@dataclass(frozen=True)
class ChampionPointer:
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


def read_champion(path: Path) -> ChampionPointer | None:
    """The pointer, or None before the first promotion. :class:`PolicyError` when it is broken."""
    try:
        return ChampionPointer(**read_json(path))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise PolicyError(f"{path} is not a champion pointer: {error}") from error


def write_champion(path: Path, pointer: ChampionPointer) -> None:
    write_json_atomic(path, asdict(pointer))
