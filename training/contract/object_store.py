"""Objects by their keys, in a folder or in a bucket: what one machine leaves for another.

An object is there as a whole or not at all. A key is names with ``/`` between them, below the store's own
place. Every method raises :class:`ObjectStoreError` when the store does not answer, or refuses.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from training.contract.errors import ObjectStoreError
from training.contract.files import write_atomic
from training.contract.settings import ShipSettings

_BLOCK = 8 * 1024 * 1024
_CONNECT_S, _ANSWER_S, _TRIES = 5.0, 20.0, 3  # of a connection, and of an answer without a byte


class ObjectStore(Protocol):
    where: str

    def names(self, under: str = "") -> list[str]:
        """What lies directly below a key, sorted: objects, and first parts of longer keys."""

    def size(self, key: str) -> int | None:
        """In bytes; None: there is no such object."""

    def put(self, key: str, content: Path | bytes) -> None:
        """A file's content, or these bytes, in the place of what was there."""

    def read(self, key: str) -> bytes | None:
        """None: there is no such object."""

    def get(self, key: str, to: Path) -> None:
        """Copies the object into a file. Raises :class:`ObjectStoreError` where there is none."""

    def remove(self, key: str) -> None:
        """Also where there is none."""


def object_store(ship: ShipSettings) -> ObjectStore:
    """The store that ``serving.ship`` names. Raises :class:`ObjectStoreError`."""
    assert ship.to is not None
    return Bucket(ship.to, ship.endpoint) if ship.to.startswith("s3://") else Folder(Path(ship.to))


class Folder:
    """A folder that is there: one that is not mounted is a store that does not answer, and is not made."""

    def __init__(self, root: Path) -> None:
        self._root, self.where = root, str(root)

    def names(self, under: str = "") -> list[str]:
        with self._answering():
            folder = self._root / under
            return sorted(p.name for p in folder.glob("[!.]*")) if folder.is_dir() else []

    def size(self, key: str) -> int | None:
        with self._answering():
            path = self._root / key
            return path.stat().st_size if path.is_file() else None

    def put(self, key: str, content: Path | bytes) -> None:
        with self._answering():
            if isinstance(content, bytes):
                write_atomic(self._root / key, lambda temporary: temporary.write_bytes(content))
            else:
                write_atomic(self._root / key, lambda temporary: shutil.copyfile(content, temporary))

    def read(self, key: str) -> bytes | None:
        with self._answering():
            path = self._root / key
            return path.read_bytes() if path.is_file() else None

    def get(self, key: str, to: Path) -> None:
        with self._answering():
            shutil.copyfile(self._root / key, to)

    def remove(self, key: str) -> None:
        with self._answering():
            (self._root / key).unlink(missing_ok=True)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        if not self._root.is_dir():
            raise ObjectStoreError(
                f"serving.ship.to: the folder {self._root} is not there: make it, or mount it"
            )
        with _told(self.where):
            yield


class Bucket:
    """A bucket of S3's, or of a server that speaks as S3 does, by PyArrow.

    Credentials and region are taken as AWS' own tools take them: ``$AWS_ACCESS_KEY_ID`` and
    ``$AWS_SECRET_ACCESS_KEY``, a profile, or the machine's role; ``$AWS_DEFAULT_REGION``.
    """

    def __init__(self, to: str, endpoint: str | None) -> None:
        # imported where a bucket is named: the service needs PyArrow for nothing else
        from pyarrow import fs

        self._fs, self.where = fs, to
        self._root = to.removeprefix("s3://").rstrip("/")
        options: dict[str, Any] = {}
        if endpoint is not None:
            options["scheme"], _, options["endpoint_override"] = endpoint.partition("://")
        with _told(self.where):
            self._s3 = fs.S3FileSystem(
                connect_timeout=_CONNECT_S,
                request_timeout=_ANSWER_S,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
                background_writes=False,
                allow_delayed_open=True,  # a small object is one request
                **options,
            )

    def names(self, under: str = "") -> list[str]:
        with _told(self.where):
            selector = self._fs.FileSelector(self._path(under).rstrip("/"), allow_not_found=True)
            found = sorted(info.base_name for info in self._s3.get_file_info(selector))
            if not found and self._missing(self._root.partition("/")[0]):  # which a listing does not tell
                raise ObjectStoreError(f"serving.ship.to: {self.where}: there is no such bucket")
            return found

    def size(self, key: str) -> int | None:
        with _told(self.where):
            info = self._s3.get_file_info(self._path(key))
            return int(info.size) if info.type == self._fs.FileType.File else None

    def put(self, key: str, content: Path | bytes) -> None:
        with _told(self.where), self._s3.open_output_stream(self._path(key)) as target:
            if isinstance(content, bytes):
                target.write(content)
                return
            with content.open("rb") as file:
                while block := file.read(_BLOCK):
                    target.write(block)

    def read(self, key: str) -> bytes | None:
        with _told(self.where):
            try:
                with self._s3.open_input_stream(self._path(key)) as source:
                    return bytes(source.read())
            except FileNotFoundError:
                return None

    def get(self, key: str, to: Path) -> None:
        with _told(self.where), self._s3.open_input_stream(self._path(key)) as source, to.open("wb") as file:
            while block := source.read(_BLOCK):
                file.write(block)

    def remove(self, key: str) -> None:
        with _told(self.where):
            try:
                self._s3.delete_file(self._path(key))
            except FileNotFoundError:
                return

    def _missing(self, path: str) -> bool:
        return bool(self._s3.get_file_info(path).type == self._fs.FileType.NotFound)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Whatever a store raises, with its name."""
    try:
        yield
    except ObjectStoreError:
        raise
    except OSError as error:
        raise ObjectStoreError(f"the object store {where}: {error}") from error
