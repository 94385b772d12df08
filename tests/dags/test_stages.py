"""A stage runs when something that it depends on has changed, and a failed day goes on where it failed."""

from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dags import inputs, stages
from dags.earlier_days import reopen
from tests.end_to_end import small_days
from training import ingest
from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS
from training.contract.records import read_record, write_record
from training.contract.session import REACH_DAYS
from training.contract.settings import Settings

FIRST, SECOND, THIRD = small_days.days(3)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Three landed days, landed and validated once."""
    settings = small_days.write_settings(tmp_path_factory.mktemp("stages"), {"world": {"users": 60}})
    small_days.land_world(settings, [FIRST, SECOND, THIRD])
    for day in (FIRST, SECOND, THIRD):
        for stage in ("land", "validate_landed"):
            stages.run_stage(settings, day, stage)
    return settings


def rows_of(settings: Settings, day: date) -> pa.Table:
    return ingest.landing.read_partition(settings.layout.partition(IMPRESSIONS, day))


def arrive_late(settings: Settings, day: date) -> None:
    """One more click on the day, as late feedback brings it."""
    rows = rows_of(settings, day)
    clicked = pc.if_else(
        pc.equal(pa.array(range(len(rows))), 0), pc.subtract(1, rows["is_click"]), rows["is_click"]
    )
    place = rows.column_names.index("is_click")
    column = clicked.cast(rows.schema.field(place).type)
    note = ingest.land(settings, IMPRESSIONS, day, rows.set_column(place, "is_click", column), "world")
    assert note["changed"]


def test_an_unchanged_stage_is_kept_and_says_so(lake: Settings):
    before = read_record(lake.layout, FIRST, "validate_landed")
    record = stages.run_stage(lake, FIRST, "validate_landed")
    assert record.pop("kept")
    assert record == before == {**before, "why": "it has not run", "success": True}
    again = stages.run_stage(lake, FIRST, "validate_landed", force=True)
    assert again["why"] == "told to" and "kept" not in again


def test_late_rows_reopen_their_day_and_only_what_depends_on_it(lake: Settings):
    window = lake.learner.window_days
    calendar = [FIRST + timedelta(days=n) for n in range(window + REACH_DAYS + 1)]
    before = {(d, s): inputs.of_stage(lake, d, s) for d in calendar for s in stages.DAY_STAGES}
    arrive_late(lake, FIRST)
    changed = {
        stage: [d for d in calendar if inputs.of_stage(lake, d, stage) != before[d, stage]]
        for stage in stages.DAY_STAGES
    }
    own, learning = [FIRST], calendar[: window + REACH_DAYS]
    assert (
        changed
        == {
            "land": [],  # the lake no longer holds what it landed: see the next lines
            "validate_landed": own,
            "transform": own,
            "validate_transitions": calendar[: REACH_DAYS + 1],
            "features": own,
            "parity": own,
            "validate_training_set": learning,
            "train": learning,
            "evaluate": learning,
            "gate": [],  # by the inputs of the stages before it, once these have run
            "promote": [],
        }
    )
    assert inputs.why_not_current(lake, FIRST, "land") == f"changed: impressions of {FIRST} in the lake"
    assert inputs.why_not_current(lake, SECOND, "land") is None
    assert stages.open_days(lake, SECOND) == [FIRST] and stages.open_days(lake, FIRST) == []
    assert reopen(lake, SECOND) == ([FIRST], {})
    assert stages.open_days(lake, SECOND) == []


def test_settings_reach_the_stages_that_read_them(lake: Settings):
    def changed(**sections) -> set[str]:
        other = lake.model_copy(
            update={name: getattr(lake, name).model_copy(update=v) for name, v in sections.items()}
        )
        return {
            s
            for s in stages.DAY_STAGES
            if inputs.of_stage(other, FIRST, s) != inputs.of_stage(lake, FIRST, s)
        }

    assert changed(gate={"delta": 0.5}) == {"gate"}
    assert changed(gate={"parity_sample": 7}) == {"parity", "gate"}
    assert changed(gate={"estimator": "pdis"}) == {"evaluate", "gate"}
    assert changed(learner={"steps": 7}) == {"train", "evaluate", "gate", "promote"}
    for window in ({"window_days": 9}, {"mixed_exploration": not lake.learner.mixed_exploration}):
        learning = {"validate_training_set", "train", "evaluate", "gate", "promote"}
        assert changed(learner=window) >= learning
    assert changed(serving={"noise_std": 0.2}) == {"evaluate", "gate", "promote"}  # evaluation's bandwidth
    assert changed(serving={"port": 3001}) == {"gate", "promote"}
    assert changed(session={"gap_minutes": 20}) >= {"transform", "features", "parity", "train"}
    assert changed(store={"history_ttl_days": 400}) == {"features", "parity", "gate"}
    assert changed(postgres={"uses": ("feast", "mlflow")}) == {"features", "promote"}
    assert changed(world={"users": 7}) == changed(orchestration={"retries": 9}) == set()


def test_a_failed_stage_drops_what_came_after_it_and_goes_first_when_the_day_runs_again(lake: Settings):
    path = lake.layout.partition(IMPRESSIONS, SECOND) / "part-0.parquet"
    sound = path.read_bytes()
    write_record(lake.layout, SECOND, "transform", {"success": True})
    try:
        rows = pq.ParquetFile(path).read()
        pq.write_table(rows.drop_columns(["p_like"]), path)
        with pytest.raises(DataError, match="p_like"):
            stages.run_stage(lake, SECOND, "validate_landed")
        assert read_record(lake.layout, SECOND, "transform") is None
        assert not read_record(lake.layout, SECOND, "validate_landed")["success"]
        assert stages.open_days(lake, THIRD) == []  # nothing has been mended: the same would be found
    finally:
        path.write_bytes(sound)
    ran = []
    with pytest.raises(DataError, match="no settings"):
        _run_until(lake, SECOND, "transform", ran)
    assert ran == ["validate_landed"]


def _run_until(settings: Settings, day: date, last: str, ran: list[str]) -> None:
    """Run the day up to a stage; what ran is in ``ran``."""

    def begin(stage: str) -> None:
        if stage == last:
            raise DataError("no settings")

    def done(stage: str, record: stages.Record) -> None:
        if "kept" not in record:
            ran.append(stage)

    stages.run_day(settings, day, begin=begin, done=done)


def test_a_day_whose_log_comes_late_is_reopened_once_it_is_there(tmp_path):
    folder = tmp_path / "logs"
    settings = small_days.write_settings(tmp_path, {"world": {"users": 40, "requests_per_day": 60}})
    small_days.land_world(settings, [FIRST])
    rows = rows_of(settings, FIRST)
    late = settings.model_copy(
        update={
            "data": tmp_path / "other",
            "logs": settings.logs.model_copy(update={"source": "files", "folder": folder}),
        }
    )
    with pytest.raises(DataError, match="no file of"):
        stages.run_stage(late, FIRST, "land")
    assert stages.open_days(late, SECOND) == []
    delivery = folder / "impressions" / f"dt={FIRST}"
    delivery.mkdir(parents=True)
    pq.write_table(rows, delivery / "part.parquet")
    assert stages.open_days(late, SECOND) == [FIRST]
    assert reopen(late, SECOND) == ([FIRST], {})
    assert stages.open_days(late, SECOND) == []
    assert read_record(late.layout, FIRST, "land")["tables"]["impressions"]["rows"] == len(rows)


def test_what_another_try_can_mend_is_tried_again_by_the_next_nights_run(lake: Settings):
    record = read_record(lake.layout, FIRST, "features")
    assert record is None
    write_record(lake.layout, FIRST, "features", {"success": False, "error": "x", "transient": True})
    assert stages.open_days(lake, SECOND) == [FIRST]
    assert stages.open_days(lake, FIRST + timedelta(days=1 + lake.orchestration.reopen_days)) == []
    write_record(lake.layout, FIRST, "features", {"success": False, "error": "x", "transient": False})
    assert stages.open_days(lake, SECOND) == []
    (lake.layout.run(FIRST) / "features.json").unlink()


def test_a_gate_of_stages_that_no_longer_hold_is_refused(lake: Settings):
    for stage in ("transform", "train"):
        write_record(lake.layout, THIRD, stage, {"success": True, "inputs": {"code": "old"}})
    with pytest.raises(DataError, match=r"transform of .* is not up to date .*mtf day --date"):
        stages.run_stage(lake, THIRD, "gate")
    for stage in ("transform", "train", "gate"):
        (lake.layout.run(THIRD) / f"{stage}.json").unlink()
