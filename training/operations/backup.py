"""Backup and restore of the embedded state: one file that holds the data folder, and the folder from it.

SQLite databases are copied by SQLite's own backup, the warehouse while it is held open (so that dbt cannot
write it), everything else as files, which are only ever replaced whole. Landings, validations and changes of
what is served wait meanwhile. What runs and leaves nothing behind (logs of processes, locks, caches) is left
out. The last entry of the archive is a manifest: the folder that was backed up, and each file's size and
SHA-256.

Restoring unpacks beside the data folder, checks every byte, and then changes places with it. Absolute paths
that MLflow, Feast and Airflow keep of the old folder are rewritten to the new one.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

import duckdb

from training.contract import history
from training.contract.errors import MtfError
from training.contract.files import fsync_folder
from training.contract.layout import Layout
from training.contract.settings import Settings
from training.ingest.landing import landing_lock

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
# SQLite's own files beside a database: the backup has taken in what they hold
_BESIDE = ("-wal", "-shm", "-journal")
_SQLITE = b"SQLite format 3\x00"
# MLflow's tables and columns that hold a path of the artifacts
_MLFLOW_PATHS = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")),
    *(("model_versions", "source"), ("model_versions", "storage_location")),
)
_CHUNK = 1 << 20


def backup(settings: Settings, to: Path) -> dict[str, Any]:
    """Write the data folder to ``to``, a .tar.gz that only its owner may read; returns its manifest.

    The file holds the service's token and Airflow's keys: keep it like one. Raises :class:`MtfError` when
    there is nothing to back up, when ``to`` lies in the data folder, and while dbt has the warehouse open.
    """
    layout = settings.layout
    root = layout.root.absolute()
    if not root.is_dir():
        raise MtfError(f"there is no data folder {root} to back up")
    if to.absolute().is_relative_to(root):
        raise MtfError(f"{to} lies in the data folder {root}: name a file elsewhere")
    to.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{to.name}.", suffix=".tmp", dir=to.parent)
    temporary = Path(name)
    files: dict[str, dict[str, Any]] = {}
    try:
        with os.fdopen(handle, "wb") as sink, _still(layout):
            with tarfile.open(fileobj=sink, mode="w:gz", compresslevel=1) as archive:
                for path in _files(root):
                    found = _add(archive, root, path)
                    if found is not None:
                        files[path.relative_to(root).as_posix()] = found
                manifest = {
                    **{"format": FORMAT, "root": str(root), "files": files},
                    "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                }
                content = json.dumps(manifest, sort_keys=True).encode()
                _add_stream(archive, MANIFEST, io.BytesIO(content), len(content), 0o600, 0.0)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(to)
        fsync_folder(to.parent)
    finally:
        temporary.unlink(missing_ok=True)
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
    root.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".restore", dir=root.parent))
    old = root.with_name(f".{root.name}.before-restore")
    try:
        fresh.chmod(0o755)
        manifest = _unpack(source, fresh)
        _relocate(fresh, manifest["root"], str(root))
        shutil.rmtree(old, ignore_errors=True)
        if root.exists():
            root.replace(old)
        fresh.replace(root)
        fsync_folder(root.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if settings.layout.feast.exists():
        from training import features

        features.apply(settings)  # the registry names the files that features are read from
    return manifest


# --- writing


@contextlib.contextmanager
def _still(layout: Layout) -> Iterator[None]:
    """Hold landing, what is served, validation and the warehouse."""
    with contextlib.ExitStack() as stack:
        if layout.warehouse.exists():
            try:
                stack.enter_context(duckdb.connect(str(layout.warehouse), read_only=True))
            except duckdb.IOException as error:
                raise MtfError(
                    f"the warehouse is being written: run this again after dbt ({error})"
                ) from error
        stack.enter_context(landing_lock(layout))
        stack.enter_context(history.changing(layout))
        lock = layout.validation / ".lock"
        if lock.exists():
            file = stack.enter_context(lock.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _files(root: Path) -> Iterator[Path]:
    """Pointers first: the policies that they name are there before them, and so are in the archive."""
    left_out = [root / name for name in LEFT_OUT]
    found = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and not any(path.is_relative_to(one) for one in left_out)
        and not path.name.endswith((*_BESIDE, ".lock", ".tmp"))
        and not any(part.startswith(".") and part.endswith((".new", ".old")) for part in path.parts)
    ]
    return iter(sorted(found, key=lambda path: (path.parent != root / "serving", path)))


def _add(archive: tarfile.TarFile, root: Path, path: Path) -> dict[str, Any] | None:
    name = path.relative_to(root).as_posix()
    try:
        stat = path.stat()
        if _is_sqlite(path):
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / path.name
                with (
                    contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=60)) as mine,
                    contextlib.closing(sqlite3.connect(copy)) as theirs,
                ):
                    mine.backup(theirs)
                size = copy.stat().st_size
                with copy.open("rb") as content:
                    digest = _add_stream(archive, name, content, size, stat.st_mode & 0o777, stat.st_mtime)
            return {"bytes": size, "sha256": digest}
        with path.open("rb") as content:
            # of a log that grows, what was there when it was opened
            size = os.fstat(content.fileno()).st_size
            digest = _add_stream(archive, name, content, size, stat.st_mode & 0o777, stat.st_mtime)
    except FileNotFoundError:
        return None  # replaced or removed since it was listed
    return {"bytes": size, "sha256": digest}


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


class _Hashed(io.RawIOBase):
    """A stream of ``size`` bytes of ``content`` that hashes what is read."""

    def __init__(self, content: IO[bytes], size: int) -> None:
        self.digest, self._content, self._left = hashlib.sha256(), content, size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        chunk = self._content.read(wanted)
        self._left -= len(chunk)
        self.digest.update(chunk)
        return chunk


def _add_stream(
    archive: tarfile.TarFile, name: str, content: IO[bytes], size: int, mode: int, modified: float
) -> str:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, mode, int(modified)
    stream = _Hashed(content, size)
    archive.addfile(entry, stream)
    return stream.digest.hexdigest()


# --- reading


def _unpack(source: Path, folder: Path) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    manifest: Any = None
    try:
        with tarfile.open(source, mode="r:gz") as archive:
            for entry in archive:
                stream = archive.extractfile(entry) if entry.isreg() else None
                if stream is None:
                    raise MtfError(f"{source}: {entry.name!r} is not a plain file: this is no backup of ours")
                if entry.name == MANIFEST:
                    manifest = json.loads(stream.read())
                    continue
                path = folder / _checked(source, entry.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                digest = hashlib.sha256()
                with path.open("xb") as sink:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
                        sink.write(chunk)
                    sink.flush()
                    os.fsync(sink.fileno())
                path.chmod(entry.mode & 0o777)
                os.utime(path, (entry.mtime, entry.mtime))
                found[entry.name] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise MtfError(f"{source} cannot be read: {error}; the data folder is as it was") from error
    _check(source, manifest, found)
    return manifest


def _checked(source: Path, name: str) -> str:
    """A name that stays in its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name != path.as_posix() or name in ("", "."):
        raise MtfError(
            f"{source}: {name!r} would be written outside of the data folder; nothing was restored"
        )
    return name


def _check(source: Path, manifest: Any, found: Mapping[str, Mapping[str, Any]]) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MtfError(f"{source} has no manifest of format {FORMAT}: it is truncated or no backup of ours")
    wanted = manifest["files"]
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            what = "is missing" if name not in found else "is not what the manifest says"
            raise MtfError(f"{source}: {name} {what}; the data folder is as it was")


def _relocate(folder: Path, before: str, now: str) -> None:
    """Rewrite the absolute paths of the folder that was backed up."""
    if before == now:
        return
    configuration = folder / "airflow" / "airflow.cfg"
    if configuration.exists():
        text = configuration.read_text(encoding="utf-8")
        # the folder itself or what lies in it, not another whose name begins like it
        text = re.sub(re.escape(before) + r"(?=[/\s]|$)", lambda _: now, text)
        configuration.write_text(text, encoding="utf-8")
    database = folder / "mlflow" / "mlflow.db"
    if not database.exists():
        return
    old, new = Path(before).as_uri(), Path(now).as_uri()
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        known = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
        for table, column in _MLFLOW_PATHS:
            if table in known:
                connection.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "  # noqa: S608
                    f"where {column} = ? or substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
