"""The gate: each rule refuses for its own reason, and anything doubtful refuses."""

import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.training.promotion.conftest import Arrange, difference, estimate, write_policy
from training.contract.errors import PolicyError
from training.contract.files import read_json, sha256, write_json_atomic
from training.contract.policy import METADATA_KEY, PolicyHeader, constant_policy, save_policy
from training.contract.records import read_record, write_record
from training.contract.settings import Settings
from training.promotion import gate, promote, rollback
from training.promotion.policy_file import latency_p99_ms

DAY, NEXT = date(2026, 1, 5), date(2026, 1, 6)


def change(settings: Settings, stage: str, **values: object) -> None:
    record = read_record(settings.layout, DAY, stage)
    write_record(settings.layout, DAY, stage, {**record, **values})


def change_estimate(settings: Settings, **values: object) -> None:
    estimates = read_record(settings.layout, DAY, "evaluate")["estimates"]
    estimates["challenger"].update(values)
    change(settings, "evaluate", estimates=estimates)


def change_difference(settings: Settings, rival: str, lower: float) -> None:
    differences = read_record(settings.layout, DAY, "evaluate")["differences"]
    differences[f"challenger - {rival}"] = difference(lower + 0.1)
    change(settings, "evaluate", differences=differences)


def refused_rules(record: dict) -> list[str]:
    assert record["decision"] == "refuse"
    failed = [rule for rule in record["rules"] if not rule["passed"]]
    assert record["reasons"] == [rule["reason"] for rule in failed]
    return [rule["rule"] for rule in failed]


def test_a_good_challenger_is_promoted_with_a_reason_for_each_rule(
    settings: Settings, arrange: Arrange
) -> None:
    digest = arrange(DAY)
    asked: list[Path] = []

    def smoke(path: Path) -> dict:
        asked.append(path)
        return {"ok": True, "reason": "ranked 5 candidates"}

    record = gate(settings, DAY, smoke=smoke)
    assert record["decision"] == "promote"
    assert record["challenger"] == {"sha256": digest, "version": "p1"}
    assert record["champion"] is None
    assert asked == [settings.layout.model(DAY) / "policy.safetensors"]
    assert [rule["rule"] for rule in record["rules"]] == [
        "validate_landed",
        "validate_transitions",
        "validate_training_set",
        "trusted",
        "static",
        "constant",
        "champion",
        "alarm",
        "bounds",
        "jump",
        "parity",
        "loadable",
        "size",
        "latency",
        "not rolled back",
        "smoke",
    ]
    assert all(rule["reason"] for rule in record["rules"])
    write_record(settings.layout, DAY, "gate", record)  # plain JSON


def test_a_rerun_gives_the_same_record_but_for_the_latency(settings: Settings, arrange: Arrange) -> None:
    arrange(DAY)
    records = [gate(settings, DAY), gate(settings, DAY)]
    for record in records:
        for rule in record["rules"]:
            if rule["rule"] == "latency":
                rule.update(observed=None, reason=None)
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("stage", "values", "rule", "words"),
    [
        ("validate_landed", {"success": False}, "validate_landed", "the landed log is invalid"),
        ("parity", {"mismatched": 30, "share": 0.06}, "parity", "30 of 500 served states differ"),
        ("parity", {"compared": 0, "mismatched": 0, "share": 0.0}, "parity", "no served state"),
        (
            "parity",
            {"compared": 40, "left_out_states": 460, "left_out_users": 90},
            "parity",
            "fewer than 100 are left to compare",
        ),
        ("parity", {"compared": 0, "left_out_states": 500, "left_out_users": 90}, "parity", "fewer than 100"),
        (
            "parity",
            {"share": 0.06, "left_out_states": 100, "left_out_users": 9},
            "parity",
            "100 of 9 users are left out",
        ),
        ("parity", {"error": "IOError: disk"}, "record of parity", "failed (IOError: disk)"),
        ("train", {"skipped": "no decisions"}, "record of train", "skipped (no decisions)"),
    ],
)
def test_a_bad_record_refuses(
    settings: Settings, arrange: Arrange, stage: str, values: dict, rule: str, words: str
) -> None:
    arrange(DAY)
    change(settings, stage, **values)
    record = gate(settings, DAY)
    assert refused_rules(record) == [rule]
    assert words in record["reasons"][0]


def test_failed_expectations_are_named(settings: Settings, arrange: Arrange) -> None:
    arrange(DAY)
    fault = {"expectation": "expect_column_values_to_be_between", "column": "p_click", "severity": "critical"}
    suites = {"impressions": {"success": False, "evaluated": 9, "failed": [fault]}}
    change(settings, "validate_landed", success=False, suites=suites)
    reason = "the landed log is invalid: impressions: expect_column_values_to_be_between on p_click"
    assert gate(settings, DAY)["reasons"] == [reason]


@pytest.mark.parametrize(
    ("values", "rule", "words"),
    [
        ({"alarm": True, "alarm_reasons": ["far from the log"]}, "alarm", "trusted: far from the log"),
        ({"bound_share": 0.8}, "bounds", "80.0% of the actions' entries"),
    ],
)
def test_a_bad_estimate_refuses(
    settings: Settings, arrange: Arrange, values: dict, rule: str, words: str
) -> None:
    arrange(DAY)
    change_estimate(settings, **values)
    record = gate(settings, DAY)
    assert refused_rules(record) == [rule]
    assert words in record["reasons"][0]


def comparing(settings: Settings, **limits: object) -> Settings:
    return settings.model_copy(update={"gate": settings.gate.model_copy(update=limits)})


def judge(settings: Settings, day: date, rival: str, lower: float, **more: object) -> None:
    """Set the lower bound of the day's difference to a rival whose value is 10."""
    record = read_record(settings.layout, day, "evaluate")
    record["estimates"].setdefault(rival, estimate(1.0)).update(value=10.0)
    record["differences"][f"challenger - {rival}"] = difference(lower + 0.1)
    write_record(settings.layout, day, "evaluate", {**record, **more})


@pytest.mark.parametrize("rival", ["static", "constant"])
def test_a_gain_over_static_weights_and_the_constant_is_asked_for(
    settings: Settings, arrange: Arrange, rival: str
) -> None:
    arrange(DAY)
    judge(settings, DAY, rival, lower=0.01)
    assert gate(settings, DAY)["decision"] == "promote"
    judge(settings, DAY, rival, lower=-0.01)
    record = gate(settings, DAY)
    assert refused_rules(record) == [rival]
    assert "by +0.09, at least -0.01, not above 0" in record["reasons"][0]
    assert gate(comparing(settings, gain=-0.01), DAY)["decision"] == "promote"


def test_a_challenger_that_is_the_constant_need_not_beat_it(settings: Settings, arrange: Arrange) -> None:
    arrange(DAY)
    judge(settings, DAY, "constant", lower=-0.1)
    estimates = read_record(settings.layout, DAY, "evaluate")["estimates"]
    for name in ("challenger", "constant"):
        estimates[name]["version"] = "p1"
    change(settings, "evaluate", estimates=estimates)
    assert gate(settings, DAY)["decision"] == "promote"


def test_what_may_be_lost_to_the_champion_is_spent_and_a_shown_gain_gives_it_back(
    settings: Settings, arrange: Arrange
) -> None:
    """delta 2 % a promotion, 4 % in all: of a value of 10, losses of .2 and .4."""
    days = [date(2026, 1, 5 + number) for number in range(7)]

    def run(number: int, lower: float) -> dict:
        arrange(days[number], seed=number + 1, champion=1.0 if number else None)
        if number:
            judge(settings, days[number], "champion", lower)
        record = gate(settings, days[number])
        promote(settings, days[number], record)
        return record

    assert run(0, 0.0)["decision"] == "promote"
    assert refused_rules(run(1, -0.21)) == ["champion"]
    for number in (1, 2):
        record = run(number, -0.19)
        assert record["decision"] == "promote" and record["evidence"]["delta"] == pytest.approx(0.019)
    record = run(3, -0.19)  # 3.8 % are spent
    assert refused_rules(record) == ["champion"]
    assert "0.20% of its value (3.80% of 4.00% was spent before)" in record["reasons"][0]
    rollback(settings, "it lost")  # what is taken out has cost nothing for good
    assert run(4, -0.19)["decision"] == "promote"
    assert run(5, 0.01)["decision"] == "promote"  # a gain shown
    assert run(6, -0.19)["decision"] == "promote"


def test_without_trust_the_gate_alone_refuses_and_before_a_canary_asks_for_less(
    settings: Settings, arrange: Arrange
) -> None:
    arrange(DAY)
    judge(settings, DAY, "static", lower=-0.05, trusted=False)
    assert refused_rules(gate(settings, DAY)) == ["trusted"]
    trying = comparing(settings, evidence="canary")
    record = gate(trying, DAY)
    assert record["decision"] == "promote"  # to its canary
    [rule] = [rule for rule in record["rules"] if rule["rule"] == "trusted"]
    assert "the canary decides" in rule["reason"]
    judge(settings, DAY, "static", lower=-0.3)
    assert refused_rules(gate(trying, DAY)) == ["static"]  # clearly worse
    judge(settings, DAY, "static", lower=-0.05)
    change_estimate(settings, alarm=True, alarm_reasons=["far from the log"])
    assert refused_rules(gate(trying, DAY)) == ["alarm"]


def test_a_challenger_no_worse_than_the_champion_must_not_be_worse_than_static_weights(
    settings: Settings, arrange: Arrange
) -> None:
    arrange(DAY)
    promote(settings, DAY, gate(settings, DAY))
    arrange(NEXT, seed=2, lower=1.2, champion=1.0)
    differences = read_record(settings.layout, NEXT, "evaluate")["differences"]
    record = read_record(settings.layout, NEXT, "evaluate")
    differences["challenger - static"] = difference(-0.5)
    write_record(settings.layout, NEXT, "evaluate", {**record, "differences": differences})
    record = gate(settings, NEXT)
    assert refused_rules(record) == ["static"]
    assert "static weights by -0.5, at least -0.6" in record["reasons"][0]


def test_without_a_recorded_difference_it_refuses(settings: Settings, arrange: Arrange) -> None:
    arrange(DAY)
    change(settings, "evaluate", differences={})
    record = gate(settings, DAY)
    assert refused_rules(record) == ["static"]
    assert "recorded no difference to static weights" in record["reasons"][0]


@pytest.mark.parametrize("value", [3.0, -1.5])
def test_a_policy_whose_network_leaves_the_bounds_cannot_be_served(
    settings: Settings, arrange: Arrange, value: float
) -> None:
    arrange(DAY)
    header = PolicyHeader("constant", "p1", settings.state_spec, settings.fusion)
    digest = save_policy(
        settings.layout.model(DAY) / "policy.safetensors", header, {"action": np.full(8, value)}
    )
    change(settings, "evaluate", sha256=digest)
    record = gate(settings, DAY)
    assert refused_rules(record) == ["loadable"]
    assert f"actions of {abs(value):g}, outside [-1, 1]" in record["reasons"][0]


def test_few_states_to_compare_may_be_a_warning(settings: Settings, arrange: Arrange) -> None:
    arrange(DAY)
    change(settings, "parity", compared=40, mismatched=0, share=0.0, left_out_states=460, left_out_users=90)
    lenient = settings.model_copy(update={"gate": settings.gate.model_copy(update={"few_parity": "warn"})})
    (rule,) = (rule for rule in gate(lenient, DAY)["rules"] if rule["rule"] == "parity")
    assert rule["passed"] and "fewer than 100 are left to compare" in rule["reason"]
    change(settings, "parity", mismatched=3, share=0.075)  # a skew is one, however few are compared
    assert refused_rules(gate(lenient, DAY)) == ["parity"]


@pytest.mark.parametrize("stage", ["validate_transitions", "train", "evaluate", "parity"])
def test_a_missing_record_refuses_and_is_named(settings: Settings, arrange: Arrange, stage: str) -> None:
    arrange(DAY)
    (settings.layout.run(DAY) / f"{stage}.json").unlink()
    record = gate(settings, DAY)
    assert refused_rules(record) == [f"record of {stage}"]
    assert f"the stage {stage} left no record on {DAY}" in record["reasons"][0]


def test_a_jump_from_the_champion_refuses_and_does_not_apply_without_one(
    settings: Settings, arrange: Arrange
) -> None:
    arrange(DAY)
    change(settings, "evaluate", jump={"challenger vs champion": 1.7})
    assert gate(settings, DAY)["decision"] == "promote"  # the only estimate beside it is static's
    arrange(DAY, champion=1.0)
    change(settings, "evaluate", jump={"challenger vs champion": 1.7})
    assert refused_rules(gate(settings, DAY)) == ["jump"]
    change(settings, "evaluate", jump={})
    assert refused_rules(gate(settings, DAY)) == ["jump"]


def test_a_truncated_file_refuses(settings: Settings, arrange: Arrange) -> None:
    arrange(DAY)
    path = settings.layout.model(DAY) / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    record = gate(settings, DAY)
    assert refused_rules(record) == ["loadable"]
    assert "SHA-256" in record["reasons"][0]


@pytest.mark.parametrize("fault", ["not a number", "shape", "foreign heads"])
def test_a_file_that_cannot_be_served_refuses(settings: Settings, arrange: Arrange, fault: str) -> None:
    """The hash is right: the trainer wrote such a file."""
    arrange(DAY)
    path = settings.layout.model(DAY) / "policy.safetensors"
    if fault == "not a number":
        tensors = load_file(path)
        tensors["critic.1.bias"][0] = np.nan
        with safe_open(str(path), framework="numpy") as file:
            metadata = {METADATA_KEY: file.metadata()[METADATA_KEY]}
        save_file(tensors, path, metadata=metadata)
        digest = sha256(path)
    elif fault == "shape":
        digest = write_policy(settings, DAY, 1, perturbation=3)
    else:
        first, *rest = settings.heads  # whose weight has another interval; other names are another state
        other = settings.model_copy(update={"heads": (first.model_copy(update={"high": 3.0}), *rest)})
        digest = write_policy(other, DAY, 1)
    change(settings, "evaluate", sha256=digest)
    record = gate(settings, DAY)
    assert refused_rules(record) == ["loadable"]
    words = {"not a number": "not a number", "shape": "do not fit each other", "foreign heads": "its heads"}
    assert words[fault] in record["reasons"][0]


def test_a_large_and_a_slow_policy_refuse(settings: Settings, arrange: Arrange) -> None:
    arrange(DAY)
    limits = settings.gate.model_copy(update={"max_policy_bytes": 100, "max_latency_ms": 1e-4})
    record = gate(settings.model_copy(update={"gate": limits}), DAY)
    assert refused_rules(record) == ["size", "latency"]


def test_latency_forgives_a_hiccup_and_sees_a_slow_policy(settings: Settings) -> None:
    @dataclass
    class Stalling:
        every: int
        calls: int = 0

        def __call__(self, states: np.ndarray) -> np.ndarray:
            self.calls += 1
            if self.calls % self.every == 0:
                time.sleep(0.03)
            return np.zeros((len(states), 8))

    base = constant_policy(settings.state_spec, settings.fusion, np.zeros(8), "c")
    assert latency_p99_ms(replace(base, actor=Stalling(every=130))) < 15.0
    assert latency_p99_ms(replace(base, actor=Stalling(every=20))) > 25.0


def test_smoke_runs_last_and_refuses(settings: Settings, arrange: Arrange) -> None:
    arrange(DAY)

    def broken(path: Path) -> dict:
        return {"ok": False, "reason": "the service answered 500"}

    record = gate(settings, DAY, smoke=broken)
    assert refused_rules(record) == ["smoke"]
    assert record["reasons"] == ["smoke request: the service answered 500"]

    def forbidden(path: Path) -> dict:
        raise AssertionError("a refused policy was built")

    change_difference(settings, "static", lower=-1.0)
    assert refused_rules(gate(settings, DAY, smoke=forbidden)) == ["static"]


def test_a_rerun_after_promotion_is_unchanged_and_a_retrain_is_judged_as_at_first(
    settings: Settings, arrange: Arrange
) -> None:
    arrange(DAY)
    promote(settings, DAY, gate(settings, DAY))
    record = gate(settings, DAY)
    assert (record["decision"], record["rules"]) == ("unchanged", [])
    assert record["champion"]["version"] == "p1"

    arrange(DAY, seed=2)
    record = gate(settings, DAY)
    assert (record["decision"], record["champion"]) == ("promote", None)


def test_what_was_rolled_back_is_not_promoted_by_a_rerun(settings: Settings, arrange: Arrange) -> None:
    arrange(DAY)
    promote(settings, DAY, gate(settings, DAY))
    arrange(NEXT, seed=2, champion=1.0)
    promote(settings, NEXT, gate(settings, NEXT))
    rollback(settings, "it showed too many short videos")
    record = gate(settings, NEXT)
    assert refused_rules(record) == ["not rolled back"]
    assert "it showed too many short videos" in record["reasons"][0]
    assert record["champion"]["version"] == "p1"


def test_a_broken_pointer_is_not_taken_for_no_champion(settings: Settings, arrange: Arrange) -> None:
    arrange(DAY)
    promote(settings, DAY, gate(settings, DAY))
    pointer = read_json(settings.layout.champion)
    del pointer["sha256"]
    write_json_atomic(settings.layout.champion, pointer)
    with pytest.raises(PolicyError, match="not a pointer to a policy"):
        gate(settings, DAY)
