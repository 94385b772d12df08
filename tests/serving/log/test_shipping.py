"""Logs of replicas with disks of their own, through an object store, against the same lines in one folder."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dags import inputs
from serving.log.day_files import DayFiles, encode, worker_name
from serving.log.forgetting import forget
from serving.log.shipping import GRACE, Behind, Shipper
from tests.dags.command import mtf
from tests.serving.log import stores
from tests.training.ingest.conftest import DAY, MIDNIGHT, SHANGHAI, decision, event, feedback
from training import ingest
from training.contract import shipped
from training.contract.errors import DataError, ObjectStoreError
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.object_store import object_store
from training.contract.settings import ServingSettings, Settings, ShipSettings

NEXT = DAY + timedelta(days=1)
MINUTES = 24 * 60
NAMES = ("a", "b")
KINDS = ("decisions", "feedback")
ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.scale)])
def store(request, tmp_path: Path) -> Iterator[stores.Store]:
    with stores.opened(request.param, tmp_path) as opened:
        yield opened


def settings_of(folder: Path, ship: dict[str, Any] | None = None, **serving: Any) -> Settings:
    section = ServingSettings(ship=ShipSettings(**ship or {}), **serving)
    return Settings(data=folder, calendar=SHANGHAI, serving=section)


def written(settings: Settings, path: Path) -> Path:
    path.write_text(settings.model_dump_json(include={"data", "calendar", "serving"}))
    return path


class Replica:
    """A service's log on a disk of its own, its clock, and what ships it."""

    def __init__(self, folder: Path, name: str, store: stores.Store) -> None:
        log = folder / f"{name}-log"
        self.settings = settings_of(folder / name, store.settings, replica=name, log_folder=log)
        self.minutes, self.told = 0.0, list[tuple[Behind, bool]]()
        self.open()

    def open(self) -> None:
        """A worker starts."""
        log, worker = self.settings.layout.serving_log, worker_name(self.settings.serving.replica, 0)
        self.files = {kind: DayFiles(log / kind, worker) for kind in KINDS}
        self.shipper = Shipper(self.settings, lambda *told: self.told.append(told), self.now)

    def now(self) -> datetime:
        return MIDNIGHT + timedelta(minutes=self.minutes)

    def write(self, kind: str, day: date, line: dict[str, Any]) -> None:
        self.files[kind].write([(str(day), encode(line))])

    def roll(self) -> None:
        for files in self.files.values():
            files.roll()

    def look(self) -> None:
        """As a worker of the service does."""
        self.roll()
        self.shipper.look()


@pytest.fixture
def replicas(tmp_path: Path, store: stores.Store) -> list[Replica]:
    return [Replica(tmp_path, name, store) for name in NAMES]


@pytest.fixture
def landing(tmp_path: Path, store: stores.Store) -> Settings:
    """Of the machine that lands, which has no log but what it brings."""
    return settings_of(tmp_path / "landing", store.settings)


def lines(day: date, requests: Iterable[int]) -> Iterator[tuple[str, date, dict[str, Any]]]:
    """Decisions, and feedback on one item of each; of every fifth it comes a day late."""
    for number in requests:
        minutes = float(MINUTES * (day - DAY).days + number)
        name, user = f"{day}-{number}", number % 7
        yield "decisions", day, decision(name, minutes, (10, 11, 12), user_id=user, session_id=f"s{user}")
        late = int(number % 5 == 0)
        clicked = event(10 + number % 3, 1_000 + number, 9_000, is_click=1)
        told = feedback(name, minutes + (MINUTES if late else 1), clicked, user_id=user)
        yield "feedback", day + timedelta(days=late), told


class Traffic:
    """Gives lines to the replicas in turn, so that users alternate, and all of them to one shared folder."""

    def __init__(self, replicas: list[Replica], folder: Path) -> None:
        self.replicas, self.shared, self.turn = replicas, settings_of(folder / "shared"), 0
        log = self.shared.layout.serving_log
        workers = [worker_name(name, 0) for name in NAMES]
        self.files = {kind: [DayFiles(log / kind, worker) for worker in workers] for kind in KINDS}

    def send(self, day: date, requests: Iterable[int]) -> None:
        for kind, at, line in lines(day, requests):
            which = self.turn % len(self.replicas)
            self.turn += 1 + (self.turn % 3 == 0)  # feedback at the replica that ranked, and at the other one
            self.replicas[which].write(kind, at, line)
            self.files[kind][which].write([(str(at), encode(line))])


@pytest.fixture
def traffic(replicas: list[Replica], tmp_path: Path) -> Traffic:
    return Traffic(replicas, tmp_path)


def rows(settings: Settings, day: date) -> dict[str, list[dict[str, Any]]]:
    partitions = {table: settings.layout.partition(table, day) for table in (DECISIONS, IMPRESSIONS)}
    return {t: pq.ParquetFile(path / "part-0.parquet").read().to_pylist() for t, path in partitions.items()}


def pass_midnight(replicas: Iterable[Replica], days: int = 1) -> None:
    for replica in replicas:
        replica.minutes = days * MINUTES + GRACE.total_seconds() / 60.0
        replica.look()


def test_a_shipped_day_is_landed_as_from_a_shared_folder(traffic, replicas, landing):
    traffic.send(DAY, range(40))
    for replica in replicas:
        replica.look()  # in the middle of the day
    traffic.send(DAY, range(40, 100))
    pass_midnight(replicas)
    both = (landing, traffic.shared)
    one, other = (ingest.land_service_log(settings, DAY) for settings in both)
    assert one == other and one["tables"][DECISIONS]["rows"] == 100
    assert rows(landing, DAY) == rows(traffic.shared, DAY)

    late = [line for kind, at, line in lines(DAY, range(100)) if kind == "feedback" and at == NEXT]
    traffic.send(NEXT, range(30))
    pass_midnight(replicas, 2)
    one, other = (ingest.land_service_log(settings, NEXT) for settings in both)
    assert one == other and one["tables"][IMPRESSIONS]["days"] == [str(DAY), str(NEXT)] and late
    for day in (DAY, NEXT):
        assert rows(landing, day) == rows(traffic.shared, day)

    there = object_store(landing.serving.ship)
    for name in NAMES:
        manifest = shipped.read_manifest(there, name, DAY)
        assert manifest.final and {part.kind for part in manifest.parts} == {*KINDS}
        objects = {f"{part.sha256}.jsonl" for part in manifest.parts}
        assert there.names(f"{name}/{DAY}") == sorted({"manifest.json", *objects})


def test_a_file_that_is_written_is_not_shipped_and_its_day_is_not_whole(traffic, replicas, landing):
    traffic.send(DAY, range(10))
    for replica in replicas:
        replica.minutes = MINUTES + 60.0
        replica.shipper.look()  # with the files held
        assert replica.told[-1] == (Behind(written=3), False)
    with pytest.raises(
        DataError, match=r"'a' has not shipped its log of 2026-01-05 whole \(files there: 0\)"
    ):
        ingest.land_service_log(landing, DAY)
    for replica in replicas:
        replica.look()
    assert ingest.land_service_log(landing, DAY)["tables"][DECISIONS]["rows"] == 10


def test_a_store_that_is_away_is_caught_up_with(traffic, replicas, landing, store):
    traffic.send(DAY, range(10))
    for replica in replicas:
        replica.look()
    store.stop()
    for step in range(2):
        traffic.send(DAY, range(10 + 15 * step, 25 + 15 * step))
        for replica in replicas:
            replica.look()
            behind, failed = replica.told[-1]
            assert failed and behind.files > 2 * step and behind.bytes > 0 and behind.written == 0
    with pytest.raises(ObjectStoreError):
        ingest.land_service_log(landing, DAY)
    store.start()
    for replica in replicas:
        replica.look()
        assert replica.told[-1] == (Behind(), False)
    pass_midnight(replicas)
    for settings in (landing, traffic.shared):
        ingest.land_service_log(settings, DAY)
    assert rows(landing, DAY) == rows(traffic.shared, DAY) and len(rows(landing, DAY)[DECISIONS]) == 40
    brought = [path.read_bytes().splitlines() for path in landing.layout.serving_log.glob("*/*.jsonl")]
    counts = Counter(line for one in brought for line in one)
    assert set(counts.values()) == {1} and sum(counts.values()) == 80


def test_a_shipper_killed_anywhere_ships_the_rest_and_nothing_twice(traffic, replicas, landing, tmp_path):
    for part in range(3):
        traffic.send(DAY, range(10 * part, 10 + 10 * part))
        for replica in replicas:
            replica.roll()
    one, other = replicas
    done, settings = tmp_path / "done", written(one.settings, tmp_path / "a.yaml")
    for at in (1, 2, 5, 8, 0):  # of 9 objects and the days' manifests, as many as are left
        child = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("shipping_until.py")), str(at), str(done)],
            env={**os.environ, "MTF_SETTINGS": str(settings), "PYTHONPATH": str(ROOT)},
            timeout=300,
            check=False,
        )
        assert child.returncode == (-signal.SIGKILL if at else 0)
    pass_midnight([other])
    there = object_store(landing.serving.ship)
    manifests = [shipped.read_manifest(there, "a", day) for day in (DAY, NEXT)]
    keys = [manifest.key(part) for manifest in manifests for part in manifest.parts]
    put = Counter(key for key in done.read_text().splitlines() if not key.endswith("manifest.json"))
    assert put == Counter(keys) and set(put.values()) == {1} and len(put) == 9
    for settings in (landing, traffic.shared):
        ingest.land_service_log(settings, DAY)
    assert rows(landing, DAY) == rows(traffic.shared, DAY)


def test_a_silent_replica_stops_the_landing_until_it_is_back_or_retired(traffic, replicas, landing, tmp_path):
    traffic.send(DAY, range(10))
    pass_midnight(replicas)
    ingest.land_service_log(landing, DAY)
    one, other = replicas
    traffic.replicas = [one]
    traffic.send(NEXT, range(10))
    pass_midnight([one], 2)  # the other one is down, and says nothing of the next day's end
    with pytest.raises(
        DataError, match=r"'b' has not shipped its log of 2026-01-06 whole \(files there: 1\)"
    ):
        ingest.land_day(landing, NEXT)
    asked = inputs.of_stage(landing, NEXT, "land")
    assert asked == inputs.of_stage(landing, NEXT, "land")

    settings = written(landing, tmp_path / "landing.yaml")
    unknown = mtf("ship", "--retire", "c", settings=settings)
    assert unknown.returncode == 1 and "there are a, b" in unknown.stderr
    told = mtf("ship", "--retire", "b", settings=settings)
    assert told.returncode == 0 and "its log is whole before 2026-01-06" in told.stdout, told.stderr
    assert inputs.differences(asked, inputs.of_stage(landing, NEXT, "land"))  # so the day is run again
    assert ingest.land_day(landing, NEXT)["tables"][DECISIONS]["rows"] == 10

    asked = inputs.of_stage(landing, NEXT, "land")
    other.open()  # it is in service again, and tells of the days in which it was silent
    pass_midnight([other], 3)
    assert inputs.differences(asked, inputs.of_stage(landing, NEXT, "land"))
    with pytest.raises(
        DataError, match=r"'a' has not shipped its log of 2026-01-07 whole \(files there: 1\)"
    ):
        ingest.land_day(landing, NEXT + timedelta(days=1))
    assert ingest.land_day(landing, NEXT)["tables"][DECISIONS]["changed_days"] == []


def test_a_torn_tail_is_not_shipped(traffic, replicas, landing):
    traffic.send(DAY, range(10))
    replica = replicas[0]
    replica.roll()
    path = next((replica.settings.layout.serving_log / "decisions").glob("*.jsonl"))
    with path.open("ab") as file:  # as a worker leaves it that was killed in the middle of a write
        file.write(encode(decision("torn"))[:40])
    pass_midnight(replicas)
    for settings in (landing, traffic.shared):
        assert ingest.land_service_log(settings, DAY)["tables"][DECISIONS]["rows"] == 10
    assert rows(landing, DAY) == rows(traffic.shared, DAY)


def test_an_object_that_was_changed_is_refused_and_put_there_again(traffic, replicas, landing, tmp_path):
    traffic.send(DAY, range(10))
    pass_midnight(replicas)
    there = object_store(landing.serving.ship)
    manifest = shipped.read_manifest(there, "b", DAY)
    key = manifest.key(manifest.parts[0])
    there.put(key, there.read(key).replace(b"noise", b"nolse"))
    with pytest.raises(DataError, match=rf"{key} is not what was shipped: .* `mtf ship --again 2026-01-05`"):
        ingest.land_service_log(landing, DAY)
    told = mtf("ship", "--again", str(DAY), settings=written(replicas[1].settings, tmp_path / "b.yaml"))
    assert told.returncode == 0 and f"{len(manifest.parts)} files shipped" in told.stdout, told.stderr
    assert shipped.read_manifest(there, "b", DAY) == manifest
    assert ingest.land_service_log(landing, DAY)["tables"][DECISIONS]["rows"] == 10


def test_a_replica_keeps_its_files_for_a_week_and_until_their_day_is_whole(traffic, replicas, store):
    traffic.send(DAY, range(10))
    replica = replicas[0]
    log, kept = replica.settings.layout.serving_log, replica.settings.serving.ship.keep_days
    for path in log.glob("*/*.jsonl"):
        os.utime(path, times=(MIDNIGHT.timestamp(), MIDNIGHT.timestamp()))
    pass_midnight([replica], kept - 1)
    assert len([*log.glob("*/*.jsonl")]) == 3
    store.stop()
    pass_midnight([replica], kept)
    store.start()
    assert len([*log.glob("*/*.jsonl")]) == 3
    replica.look()
    assert [*log.glob("*/*.jsonl")] == []


def test_a_user_who_is_forgotten_is_in_no_object(traffic, replicas, landing, tmp_path):
    traffic.send(DAY, range(30))
    pass_midnight(replicas)
    ingest.land_service_log(landing, DAY)
    before = rows(landing, DAY)
    there = object_store(landing.serving.ship)
    orphan = f"a/{DAY}/{'0' * 64}.jsonl"
    there.put(orphan, b'{"user_id":3}\n')  # of a shipper that was killed before its manifest
    theirs = [line for kind, at, line in lines(DAY, range(30)) if line["user_id"] == 3]
    assert forget(landing, 3) >= 2 * len(theirs)  # there, and what was brought from there
    for name in NAMES:
        for day in (DAY, NEXT):
            manifest = shipped.read_manifest(there, name, day)
            objects = [n for n in there.names(f"{name}/{day}") if n.endswith(".jsonl")]
            assert sorted(objects) == sorted(f"{part.sha256}.jsonl" for part in manifest.parts)
            assert not any(b'"user_id":3' in there.read(f"{name}/{day}/{n}") for n in objects)
    anew = settings_of(tmp_path / "anew", landing.serving.ship.model_dump(exclude_none=True))
    for settings in (landing, anew):  # from the files that were brought before, and from the store
        ingest.land_service_log(settings, DAY)
        for table, some in rows(settings, DAY).items():
            assert some == [row for row in before[table] if row["user_id"] != 3]


def test_a_store_that_is_not_there_is_named(store, tmp_path):
    if isinstance(store, stores.FolderStore):
        elsewhere, said = {"to": str(tmp_path / "nowhere")}, "nowhere is not there: make it, or mount it"
    else:
        elsewhere, said = (
            {**store.settings, "to": "s3://another/place"},
            "s3://another/place: there is no such",
        )
    with pytest.raises(ObjectStoreError, match=said):
        ingest.land_service_log(settings_of(tmp_path / "other", elsewhere), DAY)


def test_a_replica_without_a_name_or_a_store_ships_nothing(tmp_path: Path):
    told = mtf("ship", settings=written(settings_of(tmp_path, {"to": str(tmp_path)}), tmp_path / "mtf.yaml"))
    assert told.returncode == 2 and "serving.replica: is empty" in told.stderr
    told = mtf("ship", settings=written(settings_of(tmp_path), tmp_path / "mtf.yaml"))
    assert told.returncode == 2 and "serving.ship.to: names no object store" in told.stderr
