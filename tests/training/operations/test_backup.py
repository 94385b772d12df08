"""Backup and restore: the same bytes elsewhere, a folder that rests, and nothing changed by a bad archive."""

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest
from mlflow import MlflowClient

from dags.command_line import stack
from serving.release.bento import free_port
from tests.training.operations.test_retention import policy
from training import promotion
from training.contract import in_service
from training.contract.errors import MtfError
from training.contract.files import locked, sha256, write_text_atomic
from training.contract.layout import Layout
from training.contract.pointer import PolicyPointer, read_pointer, write_pointer
from training.contract.rollout import following
from training.contract.settings import Settings
from training.ingest.landing import landing_lock
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
    os.link(layout.serving / "token", layout.serving / "again")  # a second name of the same file
    return settings


def running_stage(layout: Layout) -> AbstractContextManager[None]:
    return locked(layout.stages_lock, shared=True)


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
            "lake/impressions/dt=2026-01-05/part-0.parquet",
            "serving/again",
            "serving/token",
            "warehouse/mtf.duckdb",
        }
        == set(manifest["files"])
    )
    assert all(after[name] == before[name] for name in after)
    assert stat.S_IMODE((other.layout.serving / "token").stat().st_mode) == 0o600
    with duckdb.connect(str(other.layout.warehouse)) as connection:
        assert connection.execute("from t").fetchall() == [(42,)]


def changing(layout: Layout) -> AbstractContextManager[None]:
    return in_service.changing(Settings(data=layout.root))


@pytest.mark.parametrize("hold", [running_stage, landing_lock, changing])
def test_while_a_stage_a_landing_or_a_promotion_is_at_work_nothing_is_copied(
    settings: Settings, tmp_path: Path, hold: Callable[[Layout], AbstractContextManager[None]]
) -> None:
    with hold(settings.layout), pytest.raises(MtfError, match="is held: a stage, a landing, a promotion"):
        backup.backup(settings, tmp_path / "b.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    backup.backup(settings, tmp_path / "b.tar.gz")


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


def archive(
    path: Path,
    entries: Entries,
    kind: bytes = tarfile.REGTYPE,
    manifest: Any = None,
    to: str = "/etc/passwd",
) -> None:
    """A hand-made archive whose manifest fits its entries, unless another is given."""
    files = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in entries.items()}
    whole = {"format": 1, "root": "/old", "created": "now", "files": files} if manifest is None else manifest
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {**entries, backup.MANIFEST: json.dumps(whole).encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            if name != backup.MANIFEST and kind != tarfile.REGTYPE:
                entry.type, entry.linkname, entry.size = kind, to, 0
            tar.addfile(entry, io.BytesIO(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a way up": (lambda p: archive(p, {"../evil": b"x"}), "cannot be read: .*outside the destination"),
    "a way up inside": (
        lambda p: archive(p, {"lake/../../evil": b"x"}),
        "cannot be read: .*outside the destination",
    ),
    "an absolute path": (lambda p: archive(p, {"/tmp/evil": b"x"}), "/tmp/evil is missing"),  # noqa: S108
    "a link": (lambda p: archive(p, {"lake/a": b""}, tarfile.SYMTYPE), "cannot be read: .*absolute path"),
    "a link inside": (
        lambda p: archive(p, {"a": b"", "b": b""}, tarfile.SYMTYPE, to="."),
        "a is not what the manifest says",
    ),
    "a hard link": (lambda p: archive(p, {"lake/a": b""}, tarfile.LNKTYPE), "cannot be read"),
    "a device": (lambda p: archive(p, {"lake/a": b""}, tarfile.CHRTYPE), "cannot be read: .*special file"),
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

    monkeypatch.setattr(backup, "sha256", full)
    with pytest.raises(OSError, match="No space"):
        backup.restore(settings, file, force=True)
    assert content(tmp_path) == before


@pytest.fixture
def moved(tmp_path: Path, two_policies: tuple[Settings, PolicyPointer, PolicyPointer]) -> Settings:
    """The settings of a data folder restored in another place; the first is gone."""
    settings, _, _ = two_policies
    backup.backup(settings, tmp_path / "b.tar.gz")
    shutil.rmtree(settings.data)
    other = elsewhere(settings)
    backup.restore(other, tmp_path / "b.tar.gz")
    return other


ESTIMATES = {"estimates": {"challenger": {"lower": 0.0, "value": 1.0, "upper": 2.0}}}


def registered(settings: Settings, day: date) -> PolicyPointer:
    """A policy of the day with its run and version in the registry."""
    made = policy(settings, day, [])
    judged = {**ESTIMATES, "chosen": "constant", "sha256": made.sha256, "version": made.version}
    judged["policy"] = made.policy
    version = registry.register(settings, day, {"pool": {"constant": {"curves": {}}}}, judged)
    return replace(made, model_version=version)


@pytest.fixture
def with_registry(tmp_path: Path, empty_registry: Path) -> Settings:
    settings = Settings(data=tmp_path / "data")
    settings.layout.mlflow.mkdir(parents=True)
    shutil.copyfile(empty_registry, settings.layout.mlflow / "mlflow.db")
    return settings


@pytest.fixture
def two_policies(with_registry: Settings) -> tuple[Settings, PolicyPointer, PolicyPointer]:
    settings = with_registry
    old, new = (registered(settings, day) for day in DAYS)
    registry.set_alias(settings, registry.CHAMPION, new.model_version)
    write_pointer(settings.layout.champion, following(new, following(old, None)))
    return settings, old, new


def test_elsewhere_the_champion_its_run_and_its_predecessor_are_found(
    two_policies: tuple[Settings, PolicyPointer, PolicyPointer], moved: Settings
) -> None:
    settings, old, new = two_policies
    run = registry._client(moved).get_model_version_by_alias(registry.MODEL, registry.CHAMPION).run_id
    assert sha256(registry.artifacts(moved, run) / "policy.safetensors") == new.sha256
    assert promotion.champion_policy(moved).sha256 == new.sha256
    assert promotion.rollback(moved)["version"] == old.version
    assert read_pointer(moved.layout.champion).sha256 == old.sha256
    assert registry.alias_version(moved, registry.CHAMPION) == old.model_version
    assert not settings.data.exists()


def test_no_row_of_mlflow_names_the_data_folder(
    two_policies: tuple[Settings, PolicyPointer, PolicyPointer],
) -> None:
    settings = two_policies[0]
    client = registry._client(settings)
    experiment = client.get_experiment_by_name(registry.EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    versions = client.search_model_versions(f"name = '{registry.MODEL}'")
    places = [
        experiment.artifact_location,
        *(r.info.artifact_uri for r in runs),
        *(v.source for v in versions),
    ]
    assert len(places) == 5 and all(place.startswith("mlflow-artifacts:/") for place in places)


@pytest.mark.slow
def test_elsewhere_mlflows_server_gives_the_champions_file(
    two_policies: tuple[Settings, PolicyPointer, PolicyPointer], moved: Settings, tmp_path: Path
) -> None:
    """As anybody's client asks for it: by the model's alias, over HTTP."""
    settings = moved.model_copy(
        update={"orchestration": moved.orchestration.model_copy(update={"mlflow_port": free_port()})}
    )
    server = next(s for s in stack.services(settings, tmp_path / "mtf.yaml") if s.name == "mlflow")
    stack.start(settings, server)
    try:
        stack.wait_ready(settings, server)
        client = MlflowClient(tracking_uri=server.address, registry_uri=server.address)
        version = client.get_model_version_by_alias(registry.MODEL, registry.CHAMPION)
        names = [file.path for file in client.list_artifacts(version.run_id)]
        fetched = client.download_artifacts(version.run_id, "policy.safetensors", str(tmp_path))
    finally:
        stack.stop(settings, "mlflow")
    assert names == ["lineage.json", "policy.safetensors"]
    assert sha256(Path(fetched)) == two_policies[2].sha256


def test_a_folder_whose_runs_have_absolute_addresses_serves_and_learns_on_where_it_was_moved(
    with_registry: Settings, tmp_path: Path
) -> None:
    """As folders did that an earlier version made."""
    settings = with_registry
    location = settings.layout.artifacts.as_uri()
    registry._client(settings).create_experiment(registry.EXPERIMENT, artifact_location=location)
    old = registered(settings, DAYS[0])
    client = registry._client(settings)
    (version,) = client.search_model_versions(f"name = '{registry.MODEL}'")
    fetched = client.download_artifacts(version.run_id, "policy.safetensors", str(tmp_path))
    assert sha256(Path(fetched)) == old.sha256
    write_pointer(settings.layout.champion, following(old, None))
    backup.backup(settings, tmp_path / "b.tar.gz")
    shutil.rmtree(settings.data)
    other = elsewhere(settings)
    backup.restore(other, tmp_path / "b.tar.gz")
    assert promotion.champion_policy(other).sha256 == old.sha256
    assert registered(other, DAYS[1]).model_version == "2"
    assert len(list(other.layout.artifacts.glob("*/artifacts/policy.safetensors"))) == 2
    assert not settings.data.exists()
