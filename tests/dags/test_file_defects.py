"""Defects that come as files are stopped by the stage and the expectation that are about them.

Each is planted in a day's delivery and walks through the real stages; ``docs/validation.md`` names it with
what catches it, and is held against the list here. The harmless ones pass without a warning.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest

from dags import stages
from tests.training.validation.conftest import DAYS, Lake, _settings
from tests.training.validation.test_defects import critical, put
from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.records import read_record, read_records
from training.contract.settings import LogsSettings, Settings
from training.ingest import land_files

BEFORE, DAY = DAYS[-2], DAYS[-1]
PAGE = Path(__file__).parents[2] / "docs" / "validation.md"

Plant = Callable[[Path], None]  # of the folder of deliveries


@dataclass(frozen=True)
class Defect:
    name: str
    plant: Plant
    stage: str
    suite: str
    field: str
    told: str  # what the message names


def file(logs: Path, table: str = IMPRESSIONS, name: str = "a.parquet") -> Path:
    return logs / table / f"dt={DAY}" / name


def changed(change: Callable[[pa.Table], pa.Table], table: str = IMPRESSIONS) -> Plant:
    def plant(logs: Path) -> None:
        path = file(logs, table)
        pq.write_table(change(pq.ParquetFile(path).read()), path)

    return plant


def as_csv(change: Callable[[bytes], bytes], name: str = "a.csv", table: str = IMPRESSIONS) -> Plant:
    """The delivery as a CSV file, its bytes changed."""

    def plant(logs: Path) -> None:
        rows = pq.ParquetFile(file(logs, table)).read()
        file(logs, table).unlink()
        path = file(logs, table, name)
        with pa.CompressedOutputStream(path, "gzip") if name.endswith(".gz") else path.open("wb") as sink:
            lists = [field.name for field in rows.schema if pa.types.is_list(field.type)]
            pc_csv.write_csv(rows.drop_columns(lists), sink)
        path.write_bytes(change(path.read_bytes()))

    return plant


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut(logs: Path) -> None:
    file(logs).write_bytes(half(file(logs).read_bytes()))


def parts_overlap(logs: Path) -> None:
    """The writer ran twice, and the second file tells of some requests otherwise."""
    rows = pq.ParquetFile(file(logs)).read().slice(0, 60)
    pq.write_table(put("play_time_ms", 0, 7)(rows), file(logs, name="b.parquet"))


def of_the_day_before(logs: Path) -> None:
    shutil.copy(logs / IMPRESSIONS / f"dt={BEFORE}" / "a.parquet", file(logs))


def tomorrow(rows: pa.Table) -> pa.Table:
    """Of every item of some requests: more than a clock or two that are wrong."""
    for row in range(60):
        rows = put("event_ts", row, rows["event_ts"][row].as_py() + timedelta(days=1))(rows)
    return rows


def renamed(rows: pa.Table) -> pa.Table:
    return rows.rename_columns(["was_clicked" if n == "is_click" else n for n in rows.column_names])


def texts(rows: pa.Table) -> pa.Table:
    values = [f"user-{value}" for value in rows["user_id"].to_pylist()]
    return rows.set_column(rows.column_names.index("user_id"), "user_id", pa.array(values))


def fractions(rows: pa.Table) -> pa.Table:
    values = [value + 0.5 for value in rows["position"].to_pylist()]
    return rows.set_column(rows.column_names.index("position"), "position", pa.array(values))


def another_user(rows: pa.Table) -> pa.Table:
    return put("user_id", 3, rows["user_id"][3].as_py() + 1)(rows)


def another_time(rows: pa.Table) -> pa.Table:
    return put("event_ts", 3, rows["event_ts"][3].as_py() + timedelta(minutes=1))(rows)


def other_users(rows: pa.Table) -> pa.Table:
    values = [value + 1_000 for value in rows["user_id"].to_pylist()]
    return rows.set_column(rows.column_names.index("user_id"), "user_id", pa.array(values))


def older_states(rows: pa.Table) -> pa.Table:
    n = rows.num_rows
    states = pa.array([[0.0]] * n, rows.schema.field("state").type)
    place = rows.column_names.index
    rows = rows.set_column(place("state"), "state", states)
    return rows.set_column(place("state_spec"), "state_spec", pa.array(["s0000000000"] * n))


LANDING = ("land", "landing")
DEFECTS = [
    Defect("a day without files", lambda logs: file(logs).unlink(), *LANDING, "delivered", "no file of"),
    Defect("a Parquet file cut off", cut, *LANDING, "readable", "a.parquet: unreadable Parquet"),
    Defect("a file of no bytes", lambda logs: file(logs).write_bytes(b""), *LANDING, "readable", "a.parquet"),
    Defect("a compressed CSV file cut off", as_csv(half, "a.csv.gz"), *LANDING, "readable", "a.csv.gz"),
    Defect("a CSV file cut off in a row", as_csv(half), *LANDING, "readable", "Expected 15 columns"),
    Defect(
        "a CSV file in Latin-1",
        as_csv(lambda content: content.replace(b"2026-01-07-000001", "2026-01-07-é".encode("latin-1"))),
        *LANDING,
        "readable",
        "line 8: not UTF-8 at byte",
    ),
    Defect(
        "a users file without its time",
        changed(lambda rows: rows.drop_columns(["updated_ts"]), USERS),
        *LANDING,
        "columns",
        "missing column updated_ts",
    ),
    Defect("a column renamed", changed(renamed), *LANDING, "columns", "a new name perhaps: was_clicked"),
    Defect("text in place of user ids", changed(texts), *LANDING, "types", "row 1: column user_id is 'user-"),
    Defect("positions between two", changed(fractions), *LANDING, "types", "row 1: column position is 0.5"),
    Defect("decisions as CSV", as_csv(lambda c: c, table=DECISIONS), *LANDING, "types", "action is a list"),
    Defect("a row without a time", changed(put("event_ts", 3, None)), *LANDING, "times", "row 4 is null"),
    Defect("rows of a day to come", changed(tomorrow), *LANDING, "times", "rows of 2026-01-08, a later day"),
    Defect(
        "requests told twice, in two files",
        parts_overlap,
        "validate_landed",
        "impressions_day",
        "repeated_rows",
        "no two rows have the same request_id, item_id",
    ),
    Defect(
        "the file of the day before",
        of_the_day_before,
        "validate_landed",
        "impressions_day",
        "rows",
        "there are impressions",
    ),
    Defect(
        "a request shown to two users",
        changed(another_user),
        "validate_landed",
        "impressions_day",
        "requests_of_several_users",
        "shown to one user",
    ),
    Defect(
        "a request shown at two times",
        changed(another_time),
        "validate_landed",
        "impressions_day",
        "requests_of_several_times",
        "shown at one time",
    ),
    Defect(
        "decisions of other users than those who were shown them",
        changed(other_users),
        "validate_landed",
        "decisions_day",
        "decisions_for_another_user",
        "are of one user",
    ),
    Defect(
        "states of an older specification all day",
        changed(older_states, DECISIONS),
        "validate_training_set",
        "training_set_day",
        "current_transitions",
        "current state specification",
    ),
]
FAST = ("a Parquet file cut off", "a CSV file in Latin-1")


@pytest.fixture(scope="module")
def _delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three ordinary days as deliveries, the first two landed."""
    folder = tmp_path_factory.mktemp("delivered")
    source = Lake(_settings(folder / "source"))
    for day in DAYS:
        source.add_day(day)
        for table in (IMPRESSIONS, DECISIONS, USERS):
            place = folder / "logs" / table / f"dt={day}"
            place.mkdir(parents=True)
            shutil.copy(source.path(table, day), place / "a.parquet")
    settings = files_of(folder)
    for day in DAYS[:-1]:
        land_files(settings, day, settings.logs.folder)
    return folder


def files_of(folder: Path) -> Settings:
    logs = LogsSettings(source="files", folder=folder / "logs")
    settings = _settings(folder / "data")
    one_day = settings.learner.model_copy(update={"window_days": 1})
    return settings.model_copy(update={"logs": logs, "learner": one_day})


@pytest.fixture
def delivered(_delivered: Path, tmp_path: Path) -> Settings:
    for part in ("logs", "data"):
        shutil.copytree(_delivered / part, tmp_path / part)
    return files_of(tmp_path)


def walk(settings: Settings, until: str = "validate_training_set") -> None:
    for stage in stages.DAY_STAGES[: stages.DAY_STAGES.index(until) + 1]:
        if stage not in ("features", "parity"):  # of no say in what the learner sees
            stages.run_stage(settings, DAY, stage)


@pytest.mark.parametrize(
    "defect",
    [pytest.param(d, marks=[] if d.name in FAST else pytest.mark.slow, id=d.name) for d in DEFECTS],
)
def test_a_defect_in_a_file_is_caught_by_what_is_about_it(delivered: Settings, defect: Defect) -> None:
    defect.plant(delivered.logs.folder)
    with pytest.raises(DataError, match=f"{defect.stage} of {DAY} failed"):
        walk(delivered)
    record = read_record(delivered.layout, DAY, defect.stage)
    assert (defect.suite, defect.field) in critical(record), critical(record)
    [message] = [f["message"] for f in record["suites"][defect.suite]["failed"] if f["field"] == defect.field]
    assert defect.told in message
    # the stages before it passed, and none came after: nothing reached training
    assert [s for s, r in read_records(delivered.layout, DAY).items() if not r.get("success", True)] == [
        defect.stage
    ]
    assert read_record(delivered.layout, DAY, "train") is None
    assert (delivered.data / record["suites"][defect.suite]["page"]).is_file()
    day_page = (delivered.layout.reports / f"dt={DAY}" / "index.html").read_text()
    assert f"Stopped at {defect.stage}" in day_page
    assert "Data Docs" in day_page


def the_same_twice(logs: Path) -> None:
    shutil.copy(file(logs), file(logs, name="again.parquet"))


def in_two_parts(logs: Path) -> None:
    rows = pq.ParquetFile(file(logs)).read()
    pq.write_table(rows.slice(0, 900), file(logs))
    pq.write_table(rows.slice(900), file(logs, name="b.parquet"))


def late_rows(logs: Path) -> None:
    """A row of the day before comes with the day's delivery."""
    late = pq.ParquetFile(logs / IMPRESSIONS / f"dt={BEFORE}" / "a.parquet").read().slice(5, 1)
    pq.write_table(put("item_id", 0, 10**6)(late), file(logs, name="late.parquet"))


HARMLESS: dict[str, Plant] = {
    "the same file delivered twice": the_same_twice,
    "a day in two files": in_two_parts,
    "a late row of the day before": late_rows,
    "a note beside the files": lambda logs: (file(logs).parent / "_note.txt").write_text("x"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_variation_of_files_raises_no_alarm(delivered: Settings, name: str) -> None:
    HARMLESS[name](delivered.logs.folder)
    walk(delivered, "validate_landed")
    record = read_record(delivered.layout, DAY, "validate_landed")
    assert [f["message"] for suite in record["suites"].values() for f in suite["failed"]] == []


def test_a_refusal_leaves_data_docs_once_the_file_is_mended(delivered: Settings) -> None:
    path = file(delivered.logs.folder)
    content = path.read_bytes()
    cut(delivered.logs.folder)
    with pytest.raises(DataError):
        stages.run_stage(delivered, DAY, "land")
    docs = delivered.layout.validation / "data_docs"
    assert "every file can be read" in (docs / "index.html").read_text()
    path.write_bytes(content)
    walk(delivered, "validate_landed")
    assert "every file can be read to its end" not in (docs / "index.html").read_text()
    assert not list((docs / "validations" / "landing").rglob("*.html"))


def test_the_docs_name_every_defect_and_what_catches_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for d in DEFECTS:
        assert f"| {d.name} | {d.stage} | {d.suite} | {d.field} |" in page
    for name in HARMLESS:
        assert f"- {name}\n" in page
