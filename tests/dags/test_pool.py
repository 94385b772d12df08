"""The stages that train the pool and judge it, on a log with a known answer, as a day runs them."""

from datetime import date, timedelta

import pytest
from typer.testing import CliRunner

from dags import inputs, stages
from dags.command_line.main import app
from tests.training.conftest import ToyWorld, toy_settings
from training.contract.errors import DataError
from training.contract.layout import DECISIONS
from training.contract.pointer import PolicyPointer, write_pointer
from training.contract.policy import load_policy
from training.contract.records import read_record, write_record
from training.contract.settings import Settings

DAY = date(2026, 1, 7)
POOL = ("constant", "return_regression", "batchrl_mtf")


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A log, and the pool trained and judged on it."""
    folder = tmp_path_factory.mktemp("night")
    evaluation = {"test_share": 0.3, "estimators": ("session_return", "lstd_q", "fqe"), "steps": 20}
    world = ToyWorld(toy_settings(folder, learner={"algorithms": POOL}, evaluation=evaluation))
    world.log(150)
    settings = world.settings
    settings.layout.partition(DECISIONS, DAY).mkdir(parents=True)  # there was something to learn from
    for stage in ("train", "evaluate"):
        stages.run_stage(settings, DAY, stage)
    return settings


def record_of(settings: Settings, stage: str = "evaluate") -> dict:
    record = read_record(settings.layout, DAY, stage)
    assert record is not None and record["success"]
    return record


def test_the_best_of_the_pool_is_the_days_challenger(night: Settings) -> None:
    trained, judged = record_of(night, "train"), record_of(night)
    assert set(trained["pool"]) == set(POOL) and set(judged["pool"]) == set(POOL)
    chosen = trained["pool"][judged["chosen"]]
    assert (judged["sha256"], judged["version"]) == (chosen["sha256"], chosen["version"])
    assert judged["policy"] == f"models/dt={DAY}/policy.safetensors"
    policy = load_policy(night.data / judged["policy"], judged["sha256"])
    assert policy.header.lineage["algorithm"] == judged["chosen"]

    others = set(POOL) - {judged["chosen"]}
    names = {"challenger", "static", *others}
    assert set(judged["estimates"]) == names
    assert judged["estimates"]["challenger"]["version"] == chosen["version"]
    for estimator in night.evaluation.estimators:
        assert set(judged["estimators"][estimator]) == names
        assert "challenger - static" in judged["estimator_differences"][estimator]
    lower = {name: one["lower"] for name, one in judged["pool"].items()}
    assert judged["chosen"] in ("constant", max(lower, key=lambda name: lower[name]))
    assert judged["pool"][judged["chosen"]]["value"] == pytest.approx(
        judged["differences"]["challenger - static"]["value"]
    )
    assert isinstance(judged["trusted"], bool) and set(judged["arms"]) == {"random", "noise"}


def test_nothing_runs_again_where_nothing_has_changed_and_gives_the_same_where_it_must(
    night: Settings,
) -> None:
    for stage in ("train", "evaluate"):
        assert stages.run_stage(night, DAY, stage)["kept"]
    before = record_of(night)
    again = stages.run_stage(night, DAY, "evaluate", force=True)
    told = ("kept", "why", "seconds")
    assert {k: v for k, v in again.items() if k not in told} == {
        k: v for k, v in before.items() if k not in told
    }


def test_a_lost_file_of_the_pool_or_of_the_challenger_is_made_again(night: Settings) -> None:
    challenger = night.data / record_of(night)["policy"]
    challenger.unlink()
    assert "gone or another" in inputs.why_not_current(night, DAY, "evaluate")
    stages.run_stage(night, DAY, "evaluate")
    assert load_policy(challenger, record_of(night)["sha256"])

    member = night.data / record_of(night, "train")["pool"]["return_regression"]["policy"]
    content = member.read_bytes()
    member.write_bytes(b"another")
    assert "return_regression/policy.safetensors is gone or another" in inputs.why_not_current(
        night, DAY, "train"
    )
    assert "why" in stages.run_stage(night, DAY, "train")
    assert member.read_bytes() == content
    assert stages.run_stage(night, DAY, "evaluate").get("kept")  # it is the same pool


def test_a_menu_of_each_leaning_is_made_judged_and_told(
    night: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, judged = record_of(night, "train"), record_of(night)
    factors = night.learner.return_regression.leanings
    points = judged["pareto"]["points"]
    assert [point["factor"] for point in points] == list(factors)
    made = {one["factor"]: one for one in trained["leanings"].values()}
    assert set(made) == set(factors) - {1.0}
    for point in points:
        one = made.get(point["factor"], trained["pool"]["return_regression"])
        policy = load_policy(night.data / one["policy"], one["sha256"])
        assert policy.version == one["version"] == point["version"]
        assert policy.header.lineage.get("leaning", 1.0) == point["factor"]
        assert point["over"][point["version"]]["time"]["value"] == 0.0
    assert made[2.0]["policy"] == f"models/dt={DAY}/leanings/2/policy.safetensors"

    path = night.data / made[2.0]["policy"]
    path.unlink()
    assert "leanings/2/policy.safetensors is gone" in inputs.why_not_current(night, DAY, "train")
    stages.run_stage(night, DAY, "train")
    assert path.is_file() and stages.run_stage(night, DAY, "evaluate").get("kept")

    monkeypatch.setattr("dags.command_line.pareto.load_settings", lambda: night)
    shown = CliRunner().invoke(app, ["pareto", "--date", str(DAY)]).output
    assert all(f" {factor:g} " in shown for factor in factors) and " % (" in shown
    page = stages.make_report(night, DAY).read_text(encoding="utf-8")
    assert "Between time and interaction" in page and "over x1, the reward in force" in page
    refused = CliRunner().invoke(app, ["pareto", "--date", str(DAY), "--choose", "3"])
    assert isinstance(refused.exception, DataError) and "not among the factors" in str(refused.exception)
    # the gate has not been reached on this log: what it rests on has to be there
    refused = CliRunner().invoke(app, ["pareto", "--date", str(DAY), "--choose", "2"])
    assert isinstance(refused.exception, DataError)
    assert not night.layout.champion.exists()


def test_another_pool_is_judged_anew(night: Settings) -> None:
    trained = record_of(night, "train")
    assert inputs.why_not_current(night, DAY, "evaluate") is None
    try:
        fewer = {name: one for name, one in trained["pool"].items() if name != "batchrl_mtf"}
        write_record(night.layout, DAY, "train", {**trained, "pool": fewer})
        assert inputs.why_not_current(night, DAY, "evaluate") == "changed: batchrl_mtf"
    finally:
        write_record(night.layout, DAY, "train", trained)


def test_the_champion_of_an_earlier_day_is_a_rival(night: Settings) -> None:
    member = record_of(night, "train")["pool"]["batchrl_mtf"]
    yesterday = DAY - timedelta(days=1)
    pointer = PolicyPointer(
        member["policy"], member["sha256"], member["version"], str(yesterday), "1", "now", None
    )
    write_pointer(night.layout.champion, pointer)
    try:
        assert inputs.why_not_current(night, DAY, "evaluate") == "changed: champion before"
        record = stages.evaluate(night, DAY)
        assert record["estimates"]["champion"]["version"] == member["version"]
        assert "challenger - champion" in record["differences"]
        assert "challenger vs champion" in record["jump"]
    finally:
        night.layout.champion.unlink()


def test_without_a_pool_there_is_nothing_to_judge(tmp_path) -> None:
    with pytest.raises(DataError, match=f"no policies of {DAY}"):
        stages.evaluate(toy_settings(tmp_path), DAY)
