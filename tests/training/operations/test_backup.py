"""Backup and restore: the same bytes elsewhere, databases whole, and nothing changed by a bad archive."""

import hashlib
import io
import json
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.training.operations.test_retention import policy
from training import promotion
from training.contract.errors import MtfError
from training.contract.files import write_text_atomic
from training.contract.pointer import read_champion, write_champion
from training.contract.rollout import following
from training.contract.settings import Settings
from training.operations import backup
from training.promotion import registry

DAYS = [date(2026, 1, 5), date(2026, 1, 6)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A data folder with a file, a warehouse, and what is not worth keeping."""
    settings = Settings(data=tmp_path / "data")
    layout = settings.layout
    write_text_atomic(layout.root / "lake/impressions/dt=2026-01-05/part-0.parquet", "rows")
    write_text_atomic(layout.serving / "token", "secret")
    (layout.serving / "token").chmod(0o600)
    layout.warehouse.parent.mkdir(parents=True)
    with duckdb.connect(str(layout.warehouse)) as connection:
        connection.execute("create table t as select 42 as answer")
    for name in ("logs/airflow.log", "processes/airflow.json", "lake/.landing.lock", "runs/.x.json.1.tmp"):
        write_text_atomic(layout.root / name, "x")
    write_text_atomic(
        layout.airflow / "airflow.cfg",
        f"a = sqlite:///{layout.root}/airflow/airflow.db\nb = {layout.root}2\n",
    )
    return settings


def elsewhere(settings: Settings) -> Settings:
    return settings.model_copy(update={"data": settings.data.parent / "other" / "place"})


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_restored_folder_holds_the_same_bytes_and_none_of_the_rest(
    settings: Settings, tmp_path: Path
) -> None:
    file, other = tmp_path / "b.tar.gz", elsewhere(settings)
    manifest = backup.backup(settings, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert backup.restore(other, file) == manifest
    before, after = content(settings.data), content(other.data)
    assert (
        set(after)
        == {
            "airflow/airflow.cfg",
            "lake/impressions/dt=2026-01-05/part-0.parquet",
            "serving/token",
            "warehouse/mtf.duckdb",
        }
        == set(manifest["files"])
    )
    assert all(after[name] == before[name] for name in after if name != "airflow/airflow.cfg")
    assert stat.S_IMODE((other.layout.serving / "token").stat().st_mode) == 0o600
    text = (other.layout.airflow / "airflow.cfg").read_text()
    assert text == f"a = sqlite:///{other.data}/airflow/airflow.db\nb = {settings.data}2\n"
    with duckdb.connect(str(other.layout.warehouse)) as connection:
        assert connection.execute("from t").fetchall() == [(42,)]


def test_a_database_that_is_being_written_is_copied_as_of_its_last_commit(
    settings: Settings, tmp_path: Path
) -> None:
    settings.layout.mlflow.mkdir()
    path = settings.layout.mlflow / "any.db"
    other = elsewhere(settings)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("pragma journal_mode = wal")
        writer.execute("create table t (n int)")
        writer.execute("insert into t values (1)")  # lies in the write-ahead log alone
        writer.execute("begin")
        writer.execute("insert into t values (2)")
        backup.backup(settings, tmp_path / "b.tar.gz")
        writer.execute("commit")
    backup.restore(other, tmp_path / "b.tar.gz")
    with closing(sqlite3.connect(other.layout.mlflow / "any.db")) as connection:
        assert connection.execute("select n from t").fetchall() == [(1,)]
    assert not list(other.layout.mlflow.glob("*-wal"))


def test_a_warehouse_that_another_process_writes_is_not_copied(settings: Settings, tmp_path: Path) -> None:
    program = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(settings.layout.warehouse)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(MtfError, match="the warehouse is being written: run this again after dbt"):
            backup.backup(settings, tmp_path / "b.tar.gz")
        writer.stdin.close()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_with_something_in_it_is_replaced_only_when_asked(
    settings: Settings, tmp_path: Path
) -> None:
    file, other = tmp_path / "b.tar.gz", elsewhere(settings)
    backup.backup(settings, file)
    write_text_atomic(other.data / "lake/mine", "x")
    with pytest.raises(MtfError, match="is not empty: --force"):
        backup.restore(other, file)
    assert content(other.data) == {"lake/mine": b"x"}
    backup.restore(other, file, force=True)
    assert "lake/mine" not in content(other.data) and len(content(other.data)) == 4
    assert [path.name for path in other.data.parent.iterdir()] == ["place"]
    backup.restore(settings, file, force=True)  # and over the folder that it came from
    assert len(content(settings.data)) == 4


def test_a_backup_into_the_data_folder_or_of_none_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(MtfError, match="lies in the data folder"):
        backup.backup(settings, settings.data / "b.tar.gz")
    with pytest.raises(MtfError, match="there is no data folder"):
        backup.backup(elsewhere(settings), tmp_path / "b.tar.gz")


Entries = dict[str, bytes]


def archive(path: Path, entries: Entries, kind: bytes = tarfile.REGTYPE, manifest: Any = None) -> None:
    """A hand-made archive whose manifest fits its entries, unless another is given."""
    files = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in entries.items()}
    whole = {"format": 1, "root": "/old", "created": "now", "files": files} if manifest is None else manifest
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {**entries, backup.MANIFEST: json.dumps(whole).encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            if name != backup.MANIFEST and kind != tarfile.REGTYPE:
                entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 0
            tar.addfile(entry, io.BytesIO(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a way up": (lambda p: archive(p, {"../evil": b"x"}), "outside of the data folder"),
    "a way up inside": (lambda p: archive(p, {"lake/../../evil": b"x"}), "outside of the data folder"),
    "an absolute path": (lambda p: archive(p, {"/tmp/evil": b"x"}), "outside of the data folder"),  # noqa: S108
    "a link": (lambda p: archive(p, {"lake/a": b""}, tarfile.SYMTYPE), "is not a plain file"),
    "a hard link": (
        lambda p: archive(p, {"lake/a": b""}, tarfile.LNKTYPE),
        "cannot be read|not a plain file",
    ),
    "a device": (lambda p: archive(p, {"lake/a": b""}, tarfile.CHRTYPE), "is not a plain file"),
    "other content": (
        lambda p: archive(
            p, {"a": b"x"}, manifest={"format": 1, "files": {"a": {"bytes": 1, "sha256": "0"}}}
        ),
        "a is not what the manifest says",
    ),
    "a missing file": (
        lambda p: archive(p, {}, manifest={"format": 1, "files": {"a": {"bytes": 1, "sha256": "0"}}}),
        "a is missing",
    ),
    "no manifest": (lambda p: archive(p, {"a": b"x"}, manifest=[]), "has no manifest of format 1"),
    "another format": (lambda p: archive(p, {}, manifest={"format": 9}), "has no manifest of format 1"),
    "no archive": (lambda p: p.write_bytes(b"x" * 100), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_changes_nothing(settings: Settings, tmp_path: Path, name: str) -> None:
    make, message = BAD[name]
    make(tmp_path / "bad.tar.gz")
    before = content(tmp_path)
    with pytest.raises(MtfError, match=message):
        backup.restore(settings, tmp_path / "bad.tar.gz", force=True)
    assert content(tmp_path) == before and not Path("/tmp/evil").exists()  # noqa: S108


def test_a_truncated_archive_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "b.tar.gz"
    backup.backup(settings, file)
    cut(file)
    before = content(tmp_path)
    with pytest.raises(MtfError, match="cannot be read"):
        backup.restore(settings, file, force=True)
    assert content(tmp_path) == before


def test_a_failure_before_the_swap_leaves_the_folder(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "b.tar.gz"
    backup.backup(settings, file)
    write_text_atomic(settings.data / "lake/later", "x")
    before = content(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "_relocate", full)
    with pytest.raises(OSError, match="No space"):
        backup.restore(settings, file, force=True)
    assert content(tmp_path) == before


def test_elsewhere_the_champion_its_run_and_its_predecessor_are_found(tmp_path: Path) -> None:
    settings, file = Settings(data=tmp_path / "data"), tmp_path / "b.tar.gz"
    pointers = [policy(settings, day, []) for day in DAYS]
    estimates = {"estimates": {"challenger": {"lower": 0.0, "value": 1.0, "upper": 2.0}}}
    versions = [
        registry.register(settings, day, {"sha256": one.sha256, "version": one.version}, estimates)
        for day, one in zip(DAYS, pointers, strict=True)
    ]
    registry.set_alias(settings, registry.CHAMPION, versions[1])
    old, new = (
        one.__class__(**{**one.__dict__, "model_version": version})
        for one, version in zip(pointers, versions, strict=True)
    )
    write_champion(settings.layout.champion, following(new, following(old, None)))
    backup.backup(settings, file)
    shutil.rmtree(settings.data)
    other = elsewhere(settings)
    backup.restore(other, file)
    client = registry._client(other)
    version = client.get_model_version_by_alias(registry.MODEL, registry.CHAMPION)
    assert version.source.startswith(other.data.as_uri())
    fetched = client.download_artifacts(version.run_id, "policy.safetensors", str(tmp_path))
    assert hashlib.sha256(Path(fetched).read_bytes()).hexdigest() == new.sha256
    assert promotion.champion_policy(other).sha256 == new.sha256
    assert promotion.rollback(other)["version"] == old.version
    assert read_champion(other.layout.champion).sha256 == old.sha256
    assert registry.alias_version(other, registry.CHAMPION) == versions[0]
    assert not settings.data.exists()
