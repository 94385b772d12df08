"""A folder and an S3 server as the object store of a test, each of which can be away for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import S3


class FolderStore:
    def __init__(self, folder: Path) -> None:
        self._folder, self._away = folder / "store", folder / "away"
        self._folder.mkdir()
        self.settings = {"to": str(self._folder)}

    def stop(self) -> None:
        self._folder.rename(self._away)

    def start(self) -> None:
        self._away.rename(self._folder)


class BucketStore(S3):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.settings = {"to": f"s3://{self.BUCKET}/{name}", "endpoint": self.url}

    def make_bucket(self) -> None:
        import boto3

        boto3.client("s3", endpoint_url=self.url).create_bucket(Bucket=self.BUCKET)


Store = FolderStore | BucketStore


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Store]:
    """``kind``: folder or s3."""
    if kind == "folder":
        yield FolderStore(folder)
        return
    store = BucketStore(folder.name)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        store.start()
        store.make_bucket()
        try:
            yield store
        finally:
            store.stop()
