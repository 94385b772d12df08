"""Days in a row: what is unchanged is left alone, bad days are held back, mended and late ones come in."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from dags import stages
from dags.command_line.main import app
from tests.end_to_end import same_tables, small_days
from training import ingest
from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS
from training.contract.records import read_record
from training.contract.settings import SETTINGS_VARIABLE, Settings

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FIRST, SECOND, THIRD = small_days.days(3)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Three landed days, of which the first has run."""
    folder = tmp_path_factory.mktemp("days")
    settings = small_days.write_settings(folder)
    small_days.land_world(settings, [FIRST, SECOND, THIRD])
    assert stages.run_day(settings, FIRST) == list(stages.DAY_STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SETTINGS_VARIABLE, str(folder / "mtf.yaml"))
        yield settings


def backfill(first: date, last: date, *more: str) -> tuple[int, str, BaseException | None]:
    answer = CliRunner().invoke(app, ["backfill", "--from", str(first), "--to", str(last), *more])
    return answer.exit_code, answer.output, answer.exception


def days_in_tables(settings: Settings) -> set[date]:
    with duckdb.connect(str(settings.layout.warehouse), read_only=True) as connection:
        rows = connection.sql("select distinct dt from fct_transitions").fetchall()
    return {day for (day,) in rows}


def replace_scores(settings: Settings, day: date, change) -> pa.Table:
    """Land the day again with other ``p_like``; returns the rows that were there."""
    rows = ingest.landing.read_partition(settings.layout.partition(IMPRESSIONS, day))
    place = rows.column_names.index("p_like")
    column = change(rows["p_like"]).cast(rows.schema.field(place).type)
    ingest.land(settings, IMPRESSIONS, day, rows.set_column(place, "p_like", column), "world")
    return rows


def test_a_bad_day_stops_and_is_held_back_from_later_days_until_it_is_mended(settings: Settings):
    sound = replace_scores(settings, SECOND, lambda scores: pc.add(scores, 1.0))
    code, output, error = backfill(FIRST, THIRD)
    assert code == 1 and f"{FIRST} unchanged" in output
    assert f"{SECOND} validate_landed" in output and "p_like" in output and "mend the source" in output
    assert f"mtf backfill --from {SECOND} --to {THIRD}" in str(error)
    assert read_record(settings.layout, THIRD, "land") is None

    code, output, _ = backfill(SECOND, THIRD, "--continue")
    assert code == 1 and read_record(settings.layout, THIRD, "gate") is not None
    assert days_in_tables(settings) == {FIRST, THIRD}
    assert str(SECOND) not in read_record(settings.layout, THIRD, "train")["lineage"]["partitions"]
    with pytest.raises(DataError, match="has not passed its validation"):
        stages.run_stage(settings, SECOND, "transform", force=True)

    ingest.land(settings, IMPRESSIONS, SECOND, sound, "world")
    assert stages.open_days(settings, THIRD) == [SECOND]
    code, output, error = backfill(SECOND, THIRD)
    assert code == 0, (output, error)
    assert days_in_tables(settings) == {FIRST, SECOND, THIRD}
    # the third day learns from the second, and is in its reach
    assert str(SECOND) in read_record(settings.layout, THIRD, "train")["lineage"]["partitions"]
    assert stages.open_days(settings, THIRD) == []


def test_a_second_backfill_leaves_everything_alone_and_force_makes_the_same_again(settings: Settings):
    code, output, error = backfill(FIRST, THIRD)
    assert code == 0, (output, error)
    before = same_tables.final_state(settings)
    for output in (backfill(FIRST, THIRD)[1], backfill(FIRST, THIRD)[1]):
        assert all(f"{day} unchanged" in output for day in (FIRST, SECOND, THIRD))
    assert same_tables.final_state(settings) == before


def test_late_rows_of_a_day_are_taken_up_by_its_next_run_and_by_later_days(settings: Settings):
    backfill(FIRST, THIRD)
    replace_scores(settings, FIRST, lambda scores: pc.multiply(scores, 0.99))
    assert stages.open_days(settings, SECOND) == [FIRST]
    assert "land" in stages.run_day(settings, FIRST)
    reopened = stages.run_day(settings, THIRD)
    assert reopened == ["validate_transitions", *stages.LEARNING_STAGES]


@pytest.mark.timeout(2_400)  # six days, each task of two killed and run again
def test_in_order_backfilled_and_killed_days_end_in_the_same_tables(tmp_path: Path):
    # it forks, which is for a process in which no test before has left a thread
    command = [sys.executable, "-m", "tests.end_to_end.same_tables", "--out", str(tmp_path), "--days", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (tmp_path / "report.json").exists(), done.stderr
    result = json.loads((tmp_path / "report.json").read_text())
    assert result["differ"] == {"backfill": [], "killed": []}
    assert result["hits"] == result["kills"] == 2 * len(stages.DAY_STAGES)  # each was killed while it ran
    assert result["left_over"]["killed"] and not result["left_over"]["kept"]
