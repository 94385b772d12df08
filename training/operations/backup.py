"""Backup and restore of the embedded state: one file that holds the data folder, and the folder from it.

The folder is archived as it lies, while nothing writes it: who backs up stops the stack, and a stage, a
landing or a promotion at work is a refusal. What runs and leaves nothing behind (logs of processes, locks,
caches) is left out. The last entry of the archive is a manifest: the folder that was backed up, and each
file's size and SHA-256.

Restoring unpacks beside the data folder, checks every byte, and then changes places with it. Nothing in the
folder has to be rewritten where it lies elsewhere: MLflow's addresses do not name it, Airflow takes its
paths from the environment, and Feast's registry is applied again.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import duckdb

from training.contract import in_service
from training.contract.errors import MtfError
from training.contract.files import locked, replaced_folder, sha256, write_atomic
from training.contract.layout import Layout
from training.contract.records import now
from training.contract.settings import Settings

MANIFEST = "manifest.json"
FORMAT = 1
LEFT_OUT = (
    *("logs", "processes", "airflow/logs", "bentoml/tmp", "bentoml/prometheus_multiproc_dir"),
    *(
        "warehouse/dbt_target/logs",
        "warehouse/dbt_target/project",
        "warehouse/dbt_target/partial_parse.msgpack",
    ),
)


def backup(settings: Settings, to: Path) -> dict[str, Any]:
    """Write the data folder to ``to``, a .tar.gz that only its owner may read; returns its manifest.

    The file holds the service's token and Airflow's keys: keep it like one. Raises :class:`MtfError` when
    there is nothing to back up, when ``to`` lies in the data folder, and while something writes the folder.
    """
    root = settings.layout.root.absolute()
    if not root.is_dir():
        raise MtfError(f"there is no data folder {root} to back up")
    if to.absolute().is_relative_to(root):
        raise MtfError(f"{to} lies in the data folder {root}: name a file elsewhere")
    manifest: dict[str, Any] = {
        **{"format": FORMAT, "root": str(root), "files": {}},
        "created": now(),
    }
    with _still(settings.layout):
        served = in_service.as_files(settings)
        instead = {path.absolute(): text for path, text in served.items()}
        write_atomic(to, lambda temporary: _pack(temporary, root, manifest, instead), mode=0o600)
    return manifest


def restore(settings: Settings, source: Path, force: bool = False) -> dict[str, Any]:
    """Make the data folder what ``source`` holds; returns its manifest.

    Nothing of the folder changes before all of the archive has been unpacked and checked. Raises
    :class:`MtfError` for a folder that is not empty without ``force``, and for an archive that is
    truncated, is not one of :func:`backup`, or whose content is not what its manifest says.
    """
    root = settings.layout.root.absolute()
    if root.exists() and any(root.iterdir()) and not force:
        raise MtfError(f"{root} is not empty: --force puts the backup in its place")
    with replaced_folder(root) as fresh:
        manifest = _unpack(source, fresh)
        os.sync()
    if settings.layout.feast.exists():
        from training import features

        features.apply(settings)  # the registry names the files that features are read from
    return manifest


# --- writing


@contextlib.contextmanager
def locks_held(layout: Layout, *more: Path) -> Iterator[None]:
    """Hold every lock of the folder, and ``more`` that may not be there yet.

    Raises :class:`MtfError` when one is held elsewhere.
    """
    with contextlib.ExitStack() as stack:
        for lock in sorted({layout.stages_lock, *more, *layout.root.rglob("*.lock")}):
            try:
                stack.enter_context(locked(lock, wait=False))
            except BlockingIOError as error:
                raise MtfError(
                    f"{lock} is held: a stage, a landing, a promotion or a service is at work; run this "
                    f"again when it has ended"
                ) from error
        yield


@contextlib.contextmanager
def _still(layout: Layout) -> Iterator[None]:
    """Hold the warehouse and every lock of the folder; :class:`MtfError` when one is held elsewhere."""
    with contextlib.ExitStack() as stack:
        if layout.warehouse.exists():
            try:
                stack.enter_context(duckdb.connect(str(layout.warehouse), read_only=True))
            except duckdb.IOException as error:
                raise MtfError(
                    f"the warehouse is being written: run this again after dbt ({error})"
                ) from error
        stack.enter_context(locks_held(layout))
        yield


def _files(root: Path) -> list[Path]:
    left_out = [root / name for name in LEFT_OUT]
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and not any(path.is_relative_to(one) for one in left_out)
        and not path.name.endswith((".lock", ".tmp"))
        and not any(part.startswith(".") and part.endswith((".new", ".old")) for part in path.parts)
    ]


class _Hashed:
    """Hashes what is read of a file: what goes into the archive, and not what lies there later."""

    def __init__(self, file: IO[bytes]):
        self.digest, self._file = hashlib.sha256(), file

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._file.read(size)
        self.digest.update(chunk)
        return chunk


def _pack(to: Path, root: Path, manifest: dict[str, Any], instead: Mapping[Path, str | None]) -> None:
    """Write the archive and enter its files into the manifest; ``instead`` of some files, a text or none."""
    # dereference: a second name of the same file is a file of its own, not a link into the archive
    with tarfile.open(to, mode="w:gz", compresslevel=1, dereference=True) as archive:
        for path in _files(root):
            if path in instead:
                continue
            name = path.relative_to(root).as_posix()
            with path.open("rb") as file:
                entry, hashed = archive.gettarinfo(arcname=name, fileobj=file), _Hashed(file)
                archive.addfile(entry, hashed)
            manifest["files"][name] = {"bytes": entry.size, "sha256": hashed.digest.hexdigest()}
        for path, said in instead.items():
            if said is not None:
                content, name = said.encode(), path.relative_to(root).as_posix()
                _add(archive, name, content)
                told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                manifest["files"][name] = told
        _add(archive, MANIFEST, json.dumps(manifest, sort_keys=True).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


# --- reading


def _unpack(source: Path, folder: Path) -> dict[str, Any]:
    """Unpack into an empty folder and check it against the manifest, which is returned."""
    if not hasattr(tarfile, "data_filter"):
        raise MtfError("restoring needs Python 3.11.4 or newer, which unpacks nothing outside of the folder")
    try:
        with tarfile.open(source, mode="r:gz") as archive:
            archive.extractall(folder, filter="data")  # refuses what would lie or point elsewhere
        place = folder / MANIFEST
        manifest = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError) as error:
        raise MtfError(f"{source} cannot be read: {error}; the data folder is as it was") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MtfError(f"{source} has no manifest of format {FORMAT}: it is truncated or no backup of ours")
    place.unlink()
    wanted = manifest["files"]
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_symlink() or p.is_file()}
    for name in sorted({*wanted, *found}):
        path = found.get(name)
        if path is None:
            raise MtfError(f"{source}: {name} is missing; the data folder is as it was")
        # a link is none of ours, wherever it points
        if path.is_symlink() or wanted.get(name) != {"bytes": path.stat().st_size, "sha256": sha256(path)}:
            raise MtfError(f"{source}: {name} is not what the manifest says; the data folder is as it was")
    return manifest
