"""A planted difference between served and offline states, on real decisions, keeps the day's policy out."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dags import stages
from tests.end_to_end.conftest import Loop
from training import features, promotion
from training.contract.layout import DECISIONS
from training.contract.pointer import read_pointer
from training.contract.records import write_record


@pytest.mark.parametrize(("share", "refused"), [(0.0, False), (0.05, True)])
def test_states_that_differ_past_the_threshold_refuse_the_policy(loop: Loop, tmp_path, share, refused):
    settings = loop.settings.model_copy(update={"data": tmp_path})
    for part in ("lake", "runs", "models"):  # no pointer: the day's policy may have won already
        shutil.copytree(loop.settings.data / part, tmp_path / part)
    for part in ("feast", "mlflow"):  # only read: the exports are found by the registry's own paths
        (tmp_path / part).symlink_to(loop.settings.data / part)
    path = settings.layout.partition(DECISIONS, loop.day) / "part-0.parquet"
    decisions = pq.read_table(path)
    states = decisions["state"].to_pylist()
    for state in states[: int(share * len(states))]:
        state[0] += 0.5  # one entry of the state, as another scaling would change it
    place = decisions.column_names.index("state")
    planted = decisions.set_column(place, "state", pa.array(states, decisions["state"].type))
    pq.write_table(planted, path)

    record = features.parity(settings, loop.day)
    assert record["compared"] == settings.gate.parity_sample
    assert (record["share"] > settings.gate.max_parity_mismatch) is refused
    write_record(settings.layout, loop.day, "parity", {"success": True, **record})
    decision = promotion.gate(settings, loop.day, smoke=lambda policy: {"ok": True, "bento": "none"})
    (rule,) = (rule for rule in decision["rules"] if rule["rule"] == "parity")
    assert rule["passed"] is not refused
    if refused:
        assert decision["decision"] == "refuse" and rule["reason"] in decision["reasons"]
        write_record(settings.layout, loop.day, "gate", decision)
        assert "served states differ" in stages.promote(settings, loop.day)["skipped"]
        assert read_pointer(settings.layout.champion) is None
