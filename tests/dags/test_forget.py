"""A user who is forgotten: no byte and no row of them is left, and the others are as without them."""

import gzip
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from dags import stages
from dags.command_line import stack
from dags.command_line.main import app
from serving.log.day_files import DayFiles, Place, read_line
from serving.log.index.events import RequestEvents
from serving.log.index.request_index import RequestIndex, ServedRequest
from tests.end_to_end import small_days
from tests.servers import redis_server
from tests.training.ingest.conftest import DAY, MIDNIGHT, decision, event, feedback, impressions
from training import features, ingest
from training.contract.errors import MtfError
from training.contract.files import locked, read_json, write_json_atomic, write_text_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS, TABLES, USERS
from training.contract.records import read_record, write_record
from training.contract.settings import SETTINGS_VARIABLE, Settings, load_settings
from training.features.store import open_store
from training.ingest import corrections
from training.ingest.landing import read_note, read_partition
from training.ingest.schema import conform, table_spec
from training.operations import forgetting
from training.warehouse import transform
from training.warehouse.days import transformed_path

GONE, STAYS = "0b6f6a52-9f9e-4a8e-9d0a-00000000000a", "0b6f6a52-9f9e-4a8e-9d0a-0000000000ff"
PLACES = (
    *(
        "lake/impressions",
        "lake/decisions",
        "lake/users",
        "lake/parts",
        "lake/quarantine",
        "lake/corrections",
    ),
    *("serving/log/decisions", "serving/log/feedback", "serving/requests.sqlite", "warehouse/mtf.duckdb"),
    *("warehouse/marts", "runs", "validation", "logs"),
)
PROFILE = {"user_active_degree": "full_active"}


def texts(root: Path) -> Iterator[tuple[str, str]]:
    """Every file's bytes, and what the databases and Parquet files hold, as text."""
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = str(path.relative_to(root))
        raw = path.read_bytes()
        yield name, raw.decode("latin-1")
        if path.suffix == ".parquet":
            yield name, str(pq.ParquetFile(path).read().to_pylist())
        elif raw.startswith(b"SQLite format 3"):
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
                for (table,) in connection.execute("select name from sqlite_master where type = 'table'"):
                    yield name, str(connection.execute(f'select * from "{table}"').fetchall())  # noqa: S608
        elif path.suffix == ".duckdb":
            with duckdb.connect(str(path), read_only=True) as connection:
                for (table,) in connection.execute("select table_name from duckdb_tables()").fetchall():
                    yield name, str(connection.execute(f'select * from "{table}"').fetchall())  # noqa: S608
        elif path.suffix == ".gz":
            yield name, gzip.decompress(raw).decode("latin-1")


def left_of(root: Path, *words: str) -> set[str]:
    return {name for name, text in texts(root) for word in words if word in text}


def write_settings(folder: Path, **more: Any) -> Settings:
    chosen = {
        "data": str(folder / "data"),
        "ids": {"users": "string"},
        "calendar": {"timezone": "Asia/Shanghai"},
        "logs": {"source": "both", "folder": str(folder / "logs")},
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mtf.yaml").write_text(yaml.safe_dump(chosen))
    return load_settings(folder / "mtf.yaml")


class Folder:
    """A data folder with days of the service and of files, by the real writers."""

    def __init__(self, folder: Path, users: tuple[str, ...], **more: Any) -> None:
        self.settings = write_settings(folder, **more)
        self.places: dict[str, Place] = {}
        layout = self.settings.layout
        self.serve(users)
        rows = [
            {"request_id": f"f-{user[-4:]}", "user_id": user, "item_id": item, "position": item,
             "event_ts": MIDNIGHT + timedelta(minutes=30)}
            for user in users for item in range(3)
        ]  # fmt: skip
        self.deliver(IMPRESSIONS, DAY, impressions(rows, self.settings))
        profile = [{"user_id": u, "updated_ts": MIDNIGHT + timedelta(hours=1), **PROFILE} for u in users]
        self.deliver(USERS, DAY, pa.Table.from_pylist(profile))
        self.record = ingest.land_day(self.settings, DAY)
        write_record(layout, DAY, "land", {"success": True, **self.record})

    def serve(self, users: tuple[str, ...]) -> None:
        layout, lines = self.settings.layout, {"decisions": [], "feedback": [], "shadow": []}
        for n, user in enumerate(sorted(users, reverse=True)):
            request = f"served-{user[-4:]}"
            lines["decisions"].append(decision(request, n, (1, 2), user_id=user, session_id=f"s-{user[-4:]}"))
            lines["feedback"].append(feedback(request, n + 5, event(1, 900, is_click=1), user_id=user))
            lines["shadow"].append({"v": 1, "request_id": request, "items": [2, 1]})
        index = RequestIndex(layout.serving / "requests.sqlite", 30.0, text_users=True)
        for kind, some in lines.items():
            files = DayFiles(layout.serving_log / kind, "w1")
            places = files.write([(DAY.isoformat(), json.dumps(line).encode()) for line in some])
            files.close()
            if kind == "decisions":
                served = [
                    ServedRequest(line["request_id"], line["user_id"], line["session_id"], 1.0, "noise")
                    for line in some
                ]
                index.add(served, places)
                self.places = {line["user_id"]: place for line, place in zip(some, places, strict=True)}
                fed = [RequestEvents(s.request_id, s.session_id, {1: {"is_click": 1}}, [1]) for s in served]
                index.events.add(fed)
        index.close()

    def deliver(self, table: str, day: date, rows: pa.Table) -> None:
        path = self.settings.logs.folder / table / f"dt={day}" / "a.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path)

    def lake(self) -> dict[str, bytes]:
        lake = self.settings.layout.root / "lake"
        return {
            str(path.relative_to(lake)): path.read_bytes()
            for path in sorted(lake.glob("*/**/*"))
            if path.is_file() and path.parts[len(lake.parts)] not in ("quarantine", "corrections")
        }


def fill(folder: Folder) -> None:
    """What else may hold the user: quarantine, corrections, tables, features, records, pages."""
    settings, layout = folder.settings, folder.settings.layout
    spec = table_spec(settings, IMPRESSIONS)
    rows = read_partition(layout.partition(IMPRESSIONS, DAY))
    bad = rows.append_column("reason", pa.repeat("too long", rows.num_rows))
    for name in ("validation.parquet", "delivery.parquet"):
        path = layout.quarantine(IMPRESSIONS, DAY) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(bad.filter(pa.compute.equal(bad["user_id"], GONE)) if "del" in name else bad, path)
    some = conform(spec, rows, "x").to_pylist()
    pairs = corrections.pairs_table(spec, [(row, row | {"play_time_ms": 5}) for row in some])
    corrections.write(layout, IMPRESSIONS, DAY - timedelta(days=1), pairs, {"by": "me", "ts": "t"})
    late = {"2026-01-05T00:00:00+00:00": [GONE, STAYS]}
    write_json_atomic(layout.partition(IMPRESSIONS, DAY) / "_late.json", late)

    layout.warehouse.parent.mkdir(parents=True)
    with duckdb.connect(str(layout.warehouse)) as connection:
        connection.register("rows", rows)
        connection.execute("create table fct_transitions as select *, uuid()::varchar as u from rows")
        connection.execute("create table fct_policy_daily as select 1 as sessions")
        connection.execute("create view stg as select * from mtf.main.fct_transitions")
    export = layout.mart("fct_transitions") / f"dt={DAY}" / "part-0.parquet"
    export.parent.mkdir(parents=True)
    pq.write_table(rows, export)

    features.apply(settings)
    store = open_store(settings)
    stamp = pd.Timestamp(datetime(2026, 1, 5, tzinfo=UTC))
    for view in ("user_history", "user_session"):
        kinds = {"Float64": 1.0, "UnixTimestamp": stamp, "String": "s", "Int64": 1}
        values = {f.name: kinds[str(f.dtype)] for f in store.get_feature_view(view).features}
        frame = pd.DataFrame({"user_id": [GONE, STAYS], "event_timestamp": stamp, **values})
        store.write_to_online_store(view, frame, allow_registry_cache=False)
    write_record(
        layout, DAY, "transform",
        {"success": False, "error": f"dbt refused the data: unique (user_id: {GONE}, n: 2)"},
    )  # fmt: skip
    page = f"<td>user_id</td><td>&#34;{GONE}&#34;</td><td>{STAYS}</td>"
    write_text_atomic(layout.validation / "data_docs" / "index.html", page)
    write_text_atomic(layout.root / "logs" / "service.log", f"slow: {GONE}\nslow: {STAYS}\n")


def online_users(settings: Settings) -> dict[str, Any]:
    store = open_store(settings)
    rows = [{"user_id": GONE}, {"user_id": STAYS}]
    return store.get_online_features(["user_history:hist_count"], rows).to_dict()


@pytest.fixture(params=["sqlite", "redis"])
def folder(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "all" / "mtf.yaml"))
    if request.param == "sqlite":
        made = Folder(tmp_path / "all", (GONE, STAYS))
        fill(made)
        yield made
        return
    with redis_server() as port:
        store = {"online": "redis", "redis_url": f"localhost:{port}"}
        made = Folder(tmp_path / "all", (GONE, STAYS), store=store)
        fill(made)
        yield made


def forget(user: str = GONE) -> Any:
    return CliRunner().invoke(app, ["forget", "--user", user])


def test_nothing_is_left_of_a_forgotten_user_and_the_others_are_as_without_them(
    folder: Folder, tmp_path: Path
):
    settings, layout = folder.settings, folder.settings.layout
    before = left_of(layout.root, GONE)
    for part in PLACES:
        assert any(name.startswith(part) for name in before), part
    assert settings.store.online == "redis" or "feast/online.db" in before
    assert online_users(settings)["hist_count"] == [1.0, 1.0]

    said = forget()
    assert said.exit_code == 0, (said.output, said.exception)
    assert "files of `mtf backup`, which hold the user" in said.output.replace("\n", " ")
    assert left_of(layout.root, GONE, f"served-{GONE[-4:]}", f"f-{GONE[-4:]}") == set()
    of_them_alone = {
        "runs/dt=2026-01-05/transform.json",
        "lake/quarantine/impressions/dt=2026-01-05/delivery.parquet",
        *(name for name in before if name.endswith("-wal")),  # which is empty
    }
    assert left_of(layout.root, STAYS) >= before - of_them_alone
    assert online_users(settings)["hist_count"] == [None, 1.0]
    assert "user_id: forgotten" in read_record(layout, DAY, "transform")["error"]

    alone = Folder(tmp_path / "alone", (STAYS,))
    late = layout.partition(IMPRESSIONS, DAY) / "_late.json"
    assert read_json(late) == {"2026-01-05T00:00:00+00:00": [STAYS]}
    late.unlink()
    for name, content in alone.lake().items():
        if name.endswith("_landed.json"):  # how often a row was repeated is not known any more
            mine = json.loads(folder.lake()[name])
            assert mine | {"duplicates_removed": 0} == json.loads(content) | {"duplicates_removed": 0}, name
        else:
            assert folder.lake()[name] == content, name
    assert folder.lake().keys() == alone.lake().keys()
    landed = read_record(layout, DAY, "land")["tables"]
    for table in (IMPRESSIONS, DECISIONS, USERS):
        note = read_note(layout.partition(table, DAY))
        assert landed[table]["rows"] == note["rows"] and landed[table]["sha256"] == note["sha256"]
        assert landed[table]["rows"] == alone.record["tables"][table]["rows"]
    with duckdb.connect(str(layout.warehouse), read_only=True) as connection:
        assert connection.execute("select distinct user_id from stg").fetchall() == [(STAYS,)]
        assert connection.execute("from fct_policy_daily").fetchall() == [(1,)]

    # of the others the index knows where their lines are
    index = RequestIndex(layout.serving / "requests.sqlite", 30.0, text_users=True)
    found = index.requests.find(f"served-{STAYS[-4:]}")
    assert found.place == folder.places[STAYS]
    assert json.loads(read_line(layout.serving_log / "decisions", found.place))["user_id"] == STAYS
    index.close()

    again = forget()
    assert again.exit_code == 0 and "0 rows of the lake" in again.output


def test_landing_again_brings_nobody_back_and_takes_what_they_do_later(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "mtf.yaml"))
    folder = Folder(tmp_path, (GONE, STAYS))  # the files are the user's own, and keep everybody
    assert forget().exit_code == 0
    before = folder.lake()
    record = ingest.land_day(folder.settings, DAY)
    assert folder.lake() == before
    assert not any(entry["changed_days"] for entry in record["tables"].values())
    later = datetime.now(UTC) + timedelta(minutes=1)
    day = folder.settings.calendar.day_of(later)
    row = {"request_id": "new", "user_id": GONE, "item_id": 1, "event_ts": later}
    ingest.land(folder.settings, IMPRESSIONS, day, impressions([row], folder.settings), "files")
    kept = read_partition(folder.settings.layout.partition(IMPRESSIONS, day)).to_pylist()
    assert [one["user_id"] for one in kept] == [GONE]


def test_a_row_of_a_later_day_is_not_brought_back_either(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "mtf.yaml"))
    folder = Folder(tmp_path, (GONE, STAYS))
    settings = folder.settings
    wrong = DAY + timedelta(days=1)
    minutes = {GONE: 24 * 60 + 5, STAYS: 5}
    rows = [
        {"request_id": request, "user_id": user, "event_ts": MIDNIGHT + timedelta(minutes=minutes[user])}
        for request, user in (("of-a-wrong-clock", GONE), ("a", STAYS), ("b", STAYS))
    ]
    folder.deliver(IMPRESSIONS, DAY, impressions(rows, settings))
    for forgotten in (False, True):
        told = ingest.land_files(settings, DAY, settings.logs.folder)["tables"][IMPRESSIONS]
        assert told["later_rows"] == 1 and not settings.layout.partition(IMPRESSIONS, wrong).exists()
        found = left_of(settings.layout.root, "of-a-wrong-clock")
        assert found == (set() if forgotten else {f"lake/quarantine/impressions/dt={DAY}/delivery.parquet"})
        assert forget().exit_code == 0
    assert left_of(settings.layout.root, GONE) == set()


def test_while_something_writes_the_folder_nothing_is_forgotten(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "mtf.yaml"))
    folder = Folder(tmp_path, (GONE, STAYS))
    layout = folder.settings.layout
    before = left_of(layout.root, GONE)

    def refused(words: str) -> None:
        said = forget()
        assert said.exit_code == 1 and words in str(said.exception), said.output
        assert left_of(layout.root, GONE) == before

    with locked(layout.serving / "guardrail.lock"):  # as a service holds it, also one started by hand
        refused("guardrail.lock is held")
    with locked(layout.stages_lock, shared=True):
        refused("is held: a stage")
    files = DayFiles(layout.serving_log / "decisions", "w2")
    files.write([(DAY.isoformat(), b"{}")])
    refused("a service writes")
    files.close()
    write_json_atomic(layout.root / "processes" / "service.json", {"pid": 1, "started": stack._started(1)})
    refused("service runs over")


@pytest.mark.parametrize("part", ["lake", "tables", "texts"])
def test_killed_anywhere_it_is_run_again(folder: Folder, part: str, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: Any) -> int:
        raise KeyboardInterrupt

    target = {"lake": "training.ingest.forgetting._forget_in_partition",
              "tables": "training.warehouse.forgetting._copy",
              "texts": "training.operations.forgetting._forget_in_text"}[part]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(target, killed)
        assert forget().exit_code != 0
    assert forget().exit_code == 0
    assert left_of(folder.settings.layout.root, GONE) == set()


def test_an_id_that_is_none_of_the_settings_kind_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "mtf.yaml"))
    write_settings(tmp_path, ids={"users": "int64"})
    said = forget()
    assert said.exit_code == 1 and "is no int64, which ids.users says" in str(said.exception)
    said = forget("7")
    assert said.exit_code == 1 and "there is no data folder" in str(said.exception)


def test_a_number_is_taken_out_of_texts_only_where_it_is_a_user(tmp_path: Path):
    write_text_atomic(
        tmp_path / "runs" / "x.json", '{"user_id": 7, "rows": 7, "e": "user_id 7, user_id: 77"}'
    )
    assert forgetting._forget_in_text(tmp_path / "runs" / "x.json", 7)
    text = (tmp_path / "runs" / "x.json").read_text()
    assert text == '{"user_id": null, "rows": 7, "e": "user_id null, user_id: 77"}'
    assert not forgetting._forget_in_text(tmp_path / "runs" / "x.json", 7)


@pytest.mark.slow  # dbt builds two days three times
def test_tables_made_anew_equal_those_of_a_lake_that_never_had_the_user(tmp_path: Path, monkeypatch):
    first, second = days = small_days.days(2)
    source = small_days.write_settings(tmp_path / "source")
    small_days.land_world(source, days)
    everybody = read_partition(source.layout.partition(IMPRESSIONS, second))
    user = pa.compute.mode(everybody["user_id"])[0]["mode"].as_py()

    def build(name: str, rows_of: Any) -> Settings:
        settings = small_days.write_settings(tmp_path / name)
        for day in days:
            for table in TABLES:
                rows = rows_of(read_partition(source.layout.partition(table, day)))
                ingest.land(settings, table, day, rows, "files")
            for stage in ("land", "validate_landed", "transform"):
                stages.run_stage(settings, day, stage)
        return settings

    settings = build("with", lambda rows: rows)
    without = build("without", lambda rows: rows.filter(pa.compute.not_equal(rows["user_id"], user)))
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "with" / "mtf.yaml"))
    said = forget(str(user))
    assert said.exit_code == 0, (said.output, said.exception)

    def tables(some: Settings) -> dict[str, list[Any]]:
        found = {}
        with duckdb.connect(str(some.layout.warehouse), read_only=True) as connection:
            connection.execute("set TimeZone = 'UTC'")
            for (name,) in connection.execute("select table_name from duckdb_tables()").fetchall():
                found[name] = connection.sql(f"from {name} order by all").fetchall()
        for path in sorted(some.layout.marts.glob("*/dt=*/*.parquet")):
            found[str(path.relative_to(some.layout.marts))] = pq.ParquetFile(path).read().to_pylist()
        return found

    mine, theirs = tables(settings), tables(without)
    assert mine.keys() == theirs.keys() and len(mine["fct_transitions"]) > 100
    for name, rows in theirs.items():
        assert mine[name] == rows, name
    assert read_json(transformed_path(settings)) == read_json(transformed_path(without))
    assert transform.pending(settings, second) == []
    # no day waits for a rerun, and what landed it holds
    assert ingest.changed_days(settings) == []
    assert "kept" in stages.run_stage(settings, first, "land")
    with pytest.raises(MtfError):
        forgetting.forget(settings.model_copy(update={"data": tmp_path / "none"}), user, lambda: 0)
