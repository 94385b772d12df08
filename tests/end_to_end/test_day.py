"""A whole day ends as it should, twice the same, and its page says how."""

import time

import httpx
import pyarrow.parquet as pq
from bs4 import BeautifulSoup

from dags import stages
from dags.command_line import stack
from dags.command_line.demo import summarise
from dags.command_line.world import service_address
from tests.end_to_end.conftest import LOOP, Loop
from training.contract.files import sha256
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.pointer import read_pointer
from training.contract.policy import load_policy
from training.contract.records import read_record, read_records


def test_every_request_was_answered_and_logged_once(loop: Loop):
    assert loop.traffic["failures"] == 0
    decisions = pq.read_table(loop.settings.layout.partition(DECISIONS, loop.day) / "part-0.parquet")
    assert decisions.num_rows == loop.traffic["requests"]
    assert len(set(decisions["request_id"].to_pylist())) == decisions.num_rows
    impressions = pq.read_table(loop.settings.layout.partition(IMPRESSIONS, loop.day) / "part-0.parquet")
    assert impressions.num_rows == decisions.num_rows * loop.settings.world.page


def test_every_dag_succeeded(loop: Loop):
    assert loop.states == dict.fromkeys(LOOP, "success")


def test_every_stage_left_a_record(loop: Loop):
    records = read_records(loop.settings.layout, loop.day)
    assert set(stages.FUNCTIONS) <= set(records)
    assert all(record["success"] for record in records.values() if "success" in record)


def test_served_states_are_the_states_that_feast_gives_for_the_same_instant(loop: Loop):
    parity = read_record(loop.settings.layout, loop.day, "parity")
    assert parity["compared"] == loop.settings.gate.parity_sample
    assert parity["mismatched"] == 0, parity["worst"]


def test_the_gate_decided_with_reasons_and_the_pointer_follows_its_decision(loop: Loop):
    gate = read_record(loop.settings.layout, loop.day, "gate")
    assert gate["reasons"] and len(gate["rules"]) >= 8
    pointer = read_pointer(loop.settings.layout.champion)
    if gate["decision"] == "promote":
        assert pointer.sha256 == gate["challenger"]["sha256"]
        load_policy(loop.settings.data / pointer.policy, pointer.sha256)
    else:
        assert pointer is None
        assert any(not rule["passed"] for rule in gate["rules"])


def test_the_running_service_serves_what_the_pointer_names(loop: Loop):
    pointer = read_pointer(loop.settings.layout.champion)
    wanted = None if pointer is None else pointer.version
    for _ in range(100):
        champion = httpx.get(f"{service_address(loop.settings)}/status", timeout=10).json()["champion"]
        served = None if champion is None else champion["version"]
        if served == wanted:
            return
        time.sleep(0.1)
    raise AssertionError(f"the service serves {served}, the pointer names {wanted}")


def test_running_the_day_again_gives_the_same_rows_and_the_same_model(loop: Loop):
    def content() -> dict[str, str]:
        layout = loop.settings.layout
        marts = sorted(layout.marts.glob(f"*/dt={loop.day}/part-0.parquet"))
        lake = [layout.partition(t, loop.day) / "part-0.parquet" for t in (IMPRESSIONS, DECISIONS)]
        return {
            str(path): sha256(path) for path in (*marts, *lake, layout.model(loop.day) / "policy.safetensors")
        }

    before, champion = content(), read_pointer(loop.settings.layout.champion)
    (
        loop.settings.layout.model(loop.day) / "batchrl_mtf" / "learner.safetensors"
    ).unlink()  # train again, do not reuse
    for stage in stages.FUNCTIONS:
        stages.run_stage(loop.settings, loop.day, stage, force=True)
    assert content() == before
    assert len(before) >= 7
    assert read_pointer(loop.settings.layout.champion) == champion


def test_the_page_of_the_day_shows_everything(loop: Loop):
    page = BeautifulSoup(stages.make_report(loop.settings, loop.day).read_text(), "html.parser")
    # arms, the night, weights by day and segment, signals, estimates, time against interaction (2), volumes,
    # curves
    assert len(page.find_all("svg")) == 10
    for link in page.select("nav a"):
        target = loop.settings.layout.reports / f"dt={loop.day}" / link["href"]
        assert target.exists(), link["href"]
    assert {"Data Docs", "dbt docs", "all days"} <= {link.text for link in page.select("nav a")}


def test_the_summary_has_what_a_person_asks_first(loop: Loop):
    day = summarise(loop.settings, [loop.day])["days"][str(loop.day)]
    assert day["requests"] == loop.traffic["requests"] and day["failures"] == 0
    assert set(day["arms"]) == {"champion", "static", "random", "noise", "box"}
    pool = set(loop.settings.learner.algorithms)
    assert day["challenger"] in pool and set(day["pool"]) == pool
    assert set(day["estimates"]) == {"challenger", "static"} | (pool - {day["challenger"]})
    assert day["gate"]["reasons"]
    served = read_pointer(loop.settings.layout.champion)
    assert day["champion"] == (served.version if served else None)


def test_the_stack_knows_what_runs(loop: Loop):
    assert stack.pid_of(loop.settings, "service") is not None
    assert stack.pid_of(loop.settings, "airflow") is None
