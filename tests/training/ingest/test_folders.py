"""What lies in a folder of deliveries: read, or refused by name, and never half of a delivery landed."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.training.ingest.conftest import lake_bytes
from tests.training.ingest.news import DAY, csv_text, news_settings, place, rows
from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.ingest import dry, land_files

DAY_BEFORE, BEFORE_IT = DAY - timedelta(days=1), DAY - timedelta(days=2)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return news_settings(tmp_path / "data")


@pytest.fixture
def folder(tmp_path: Path, settings: Settings) -> Path:
    place(tmp_path / "logs").write_text(csv_text(rows(settings)))
    return tmp_path / "logs"


def link(to: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to)


def write(text: str = "a\n1\n") -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def profiles(**values: str) -> str:
    row = {"user_id": "1", "updated_ts": "2026-11-24T01:00:00Z", "country": "DE", "age_days": "3"} | values
    return f"{','.join(row)}\n{','.join(row.values())}\n"


DAY_FOLDER = f"{IMPRESSIONS}/dt={DAY}"
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a link to nothing": (f"{DAY_FOLDER}/b.csv", link("/none.csv"), r"b\.csv: it is a link to /none\.csv"),
    "a link round": (f"{DAY_FOLDER}/loop", link("."), "loop: a link to a folder that it is in"),
    "a pipe": (f"{DAY_FOLDER}/pipe.csv", os.mkfifo, r"pipe\.csv: it is neither a file nor a folder"),
    "a day that is a link to nothing": (f"users/dt={DAY}", link("/none"), "not a delivery: it is a link to"),
    "a table that is a link to nothing": ("users", link("/none"), "users: it is a link to /none"),
    "a mapping that is a link to nothing": ("columns.json", link("/none"), r"columns\.json: unreadable: no"),
    "a mapping in another case": ("columns.JSON", write("{}"), r"is it columns\.json\?"),
    "a mapping misspelt": ("column.json", write("{}"), r"is it columns\.json\?"),
    "a table in another case": (
        "Impressions/x.csv",
        write(),
        "Impressions: it is not read: .*impressions is",
    ),
    "a table by another name": ("impressions_old/x.csv", write(), "impressions_old: it is not read"),
    "another folder": ("events/x.csv", write(), "events: it is not read: expected impressions, decisions"),
    "another file": ("readme.txt", write(), "readme.txt: it is not read"),
    "the first of all days": (f"{IMPRESSIONS}/dt=0001-01-01/a.csv", write(), "dt=0001-01-01: not a delivery"),
    "the last of all days": (f"{IMPRESSIONS}/dt=9999-12-31/a.csv", write(), "dt=9999-12-31: not a delivery"),
    "a profile's value": (f"users/dt={DAY}/u.csv", write(profiles(age_days="10%")), "age_days is '10%'"),
    "a profile's time": (f"users/dt={DAY}/u.csv", write(profiles(updated_ts="2026-11-24")), "a date without"),
    "decisions as CSV": (f"decisions/dt={DAY}/d.csv", write(), r"d\.csv: column action is a list"),
    "decisions that are broken": (f"decisions/dt={DAY}/d.pq", write(), "unreadable Parquet"),
    "a column read twice": (
        "columns.json",
        write(json.dumps({"impressions": {"p_click": "p_share"}})),
        "p_click and p_share are both read from 'p_share'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_and_nothing_is_landed(
    settings: Settings, folder: Path, name: str
) -> None:
    where, make, message = REFUSED[name]
    (folder / where).parent.mkdir(parents=True, exist_ok=True)
    make(folder / where)
    with pytest.raises(DataError, match=message) as raised:
        land_files(settings, DAY, folder)
    assert str(raised.value).count("\n") == 0
    assert lake_bytes(settings) == {}
    dry.faults(settings, DAY, folder)  # which says the same, by file, and ends


def test_links_to_files_and_folders_are_read(tmp_path: Path, settings: Settings, folder: Path) -> None:
    text = csv_text(rows(settings))
    land_files(settings, DAY, folder)
    clean = lake_bytes(settings)
    header, *lines = text.splitlines(keepends=True)
    aside = tmp_path / "aside"
    (aside / "sub").mkdir(parents=True)
    (aside / "sub" / "b.csv").write_text(header + "".join(lines[9:]))
    (aside / "c.csv").write_text(header + "".join(lines[5:9]))
    place(folder).write_text(header + "".join(lines[:5]))
    place(folder, "sub").symlink_to(aside / "sub")
    place(folder, "c.csv").symlink_to(aside / "c.csv")
    again = news_settings(tmp_path / "again")
    assert land_files(again, DAY, folder)["tables"][IMPRESSIONS]["files"] == 3
    assert lake_bytes(again) == clean


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root reads everything; permissions are of other users."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    "where", ["a.csv", "sub", "../../users", f"../../users/dt={DAY}", "../../columns.json", "b.parquet"]
)
def test_what_may_not_be_read_is_named_with_that_cause(where: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # nobody may not look into the tests' own
        top = Path(name)
        top.chmod(0o755)
        (top / "data").mkdir()
        (top / "data").chmod(0o777)  # nobody writes there
        settings, folder = news_settings(top / "data"), top / "logs"
        place(folder).write_text(csv_text(rows(settings)))
        place(folder, "sub/b.csv").write_text(csv_text(rows(settings)))
        place(folder, table=USERS).write_text(profiles())
        (folder / "columns.json").write_text("{}")
        shutil.copy(place(folder), place(folder, "b.parquet"))
        closed = place(folder, where).resolve()
        with as_nobody(), pytest.raises(DataError, match="unreadable Parquet"):
            land_files(settings, DAY, folder)
        closed.chmod(0)
        try:
            with as_nobody(), pytest.raises(DataError, match=r"(?i)permission denied") as raised:
                land_files(settings, DAY, folder)
        finally:
            closed.chmod(0o755)
        assert closed.name in str(raised.value)
        assert "cut off" not in str(raised.value)
        assert lake_bytes(settings) == {}


def test_nothing_is_landed_of_a_delivery_whose_late_rows_cannot_be(settings: Settings, folder: Path) -> None:
    """Those of the day before need its delivery, which is gone; those of the day before it do not."""
    for day in (BEFORE_IT, DAY_BEFORE):
        place(folder, day=day).write_text(csv_text(rows(settings, day=day)))
        land_files(settings, day, folder)
    landed = lake_bytes(settings)
    late = [rows(settings, day=day)[0] | {"is_click": 1} for day in (BEFORE_IT, DAY_BEFORE)]
    place(folder).write_text(csv_text(rows(settings) + late))
    shutil.rmtree(place(folder, day=DAY_BEFORE).parent)
    with pytest.raises(DataError, match=f"the delivery .*dt={DAY_BEFORE} is gone"):
        land_files(settings, DAY, folder)
    assert lake_bytes(settings) == landed
    place(folder, day=DAY_BEFORE).write_text(csv_text(rows(settings, day=DAY_BEFORE)))
    record = land_files(settings, DAY, folder)["tables"][IMPRESSIONS]
    assert record["changed_days"] == [str(BEFORE_IT), str(DAY_BEFORE)]
    # without its late rows, the delivery takes them out of these days again
    place(folder).write_text(csv_text(rows(settings)))
    record = land_files(settings, DAY, folder)["tables"][IMPRESSIONS]
    assert record["changed_days"] == [str(BEFORE_IT), str(DAY_BEFORE)]
    assert {name: content for name, content in lake_bytes(settings).items() if str(DAY) not in name} == landed
