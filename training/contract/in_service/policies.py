"""Policy files by their hash, in the object store that logs are shipped to, where replicas share a row.

A file is there before the row names it, so a machine whose disk lacks it takes it from there.
"""

import contextlib
from pathlib import Path

from training.contract.errors import ObjectStoreError, PolicyError
from training.contract.files import sha256, write_atomic
from training.contract.log import STATIC_VERSION
from training.contract.object_store import object_store
from training.contract.pointer import PolicyPointer
from training.contract.settings import Settings
from training.contract.shipped import POLICIES


def shared(settings: Settings) -> bool:
    """Whether policy files come from an object store, too."""
    return settings.serving.index == "redis" and settings.serving.ship.to is not None


def is_here(settings: Settings, pointer: PolicyPointer) -> bool:
    return (settings.data / pointer.policy).exists() or not shared(settings)


def file_of(settings: Settings, pointer: PolicyPointer) -> Path:
    """Of the pointer's policy, on this disk, brought there where it is not yet.

    Raises :class:`ObjectStoreError` where the store does not answer, and :class:`PolicyError` where it does
    not have that file. Without an object store the file may not be there.
    """
    path = settings.data / pointer.policy
    if not is_here(settings, pointer):
        write_atomic(path, lambda temporary: _get(settings, pointer, temporary))
    return path


def keep(settings: Settings, pointer: PolicyPointer) -> None:
    """Put the file where the others find it. Raises :class:`ObjectStoreError`.

    Static weights go where the store answers: they are what is left when nothing else is fit to serve.
    """
    if not shared(settings):
        return
    with contextlib.suppress(*([ObjectStoreError] if pointer.version == STATIC_VERSION else [])):
        store, key = object_store(settings.serving.ship), f"{POLICIES}/{pointer.sha256}"
        if store.size(key) is None:
            store.put(key, settings.data / pointer.policy)


def _get(settings: Settings, pointer: PolicyPointer, to: Path) -> None:
    store, key = object_store(settings.serving.ship), f"{POLICIES}/{pointer.sha256}"
    if store.size(key) is None:
        raise PolicyError(f"{store.where}: there is no policy {key}: promote {pointer.version} again")
    store.get(key, to)
    found = sha256(to)
    if found != pointer.sha256:
        raise PolicyError(f"{store.where}: {key} has SHA-256 {found}: remove it, and promote again")
