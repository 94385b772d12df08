"""A person chooses a point of the day's sweep: what is asked of it, and that it is promoted as any other."""

import shutil
from datetime import date
from pathlib import Path

import pytest

from tests.training.promotion.conftest import Arrange, write_policy
from training.contract.errors import DataError
from training.contract.pointer import read_pointer
from training.contract.records import read_record, write_record
from training.contract.settings import Settings
from training.promotion import choose, gate, history, promote, registry, rollback, swept

EARLIER, DAY = date(2026, 1, 4), date(2026, 1, 5)


def interval(lower: float) -> dict[str, float]:
    return {"lower": lower, "value": lower + 0.1, "upper": lower + 0.2}


@pytest.fixture
def night(settings: Settings, arrange: Arrange) -> Settings:
    """A day whose challenger p1 passes, with a sweep of the factors 1 (which is p7) and 2 (p8)."""
    arrange(DAY, seed=1)
    trained, judged = (read_record(settings.layout, DAY, stage) for stage in ("train", "evaluate"))
    assert trained is not None and judged is not None
    points = []
    for seed, factor, name, where in (
        (7, 1.0, "return_regression", "return_regression"),
        (8, 2.0, "x2", "leanings/2"),
    ):
        digest = write_policy(settings, DAY, seed)
        made = settings.layout.model(DAY) / "policy.safetensors"
        path = settings.layout.model(DAY) / where / "policy.safetensors"
        path.parent.mkdir(parents=True)
        shutil.copyfile(made, path)
        entry = {
            **{"policy": path.relative_to(settings.data).as_posix(), "sha256": digest, "version": f"p{seed}"},
            **{"steps": 0, "curves": {}, "summary": {}},
        }
        trained["pool" if factor == 1.0 else "leanings"] = {
            **trained.get("pool" if factor == 1.0 else "leanings", {}),
            name: entry,
        }
        gains = {"time": interval(-1.0), "interaction": interval(factor)}
        points.append(
            {
                **{
                    "factor": factor,
                    "name": name,
                    "version": f"p{seed}",
                    "over": {"static": gains, "p1": gains},
                },
                **{"bound_share": 0.1, "jump": None, "alarm_reasons": []},
            }
        )
    write_policy(settings, DAY, 1)  # the challenger's again
    static = {"time": 18.0, "interaction": 6.0}
    sweep = {
        "points": points,
        "static": static,
        "champion": None,
        "trusted": {"time": True, "interaction": True},
    }
    write_record(settings.layout, DAY, "train", trained)
    write_record(settings.layout, DAY, "evaluate", {**judged, "pareto": sweep})
    return settings


def change(settings: Settings, **of_point: object) -> None:
    """Another record of the point of factor 2."""
    record = read_record(settings.layout, DAY, "evaluate")
    assert record is not None
    record["pareto"]["points"][1] |= of_point
    write_record(settings.layout, DAY, "evaluate", record)


def take(settings: Settings, factor: float = 2.0) -> tuple[dict, dict]:
    chosen = choose(settings, DAY, factor, "more likes")
    decision = gate(settings, DAY, chosen=chosen, smoke=lambda path: {"ok": path.is_file(), "reason": ""})
    return decision, promote(settings, DAY, decision, chosen)


def test_it_is_promoted_with_pointer_registry_and_history_and_again_changes_nothing(night: Settings) -> None:
    decision, outcome = take(night)
    assert outcome["promoted"], decision["reasons"]
    pointer = read_pointer(night.layout.champion)
    assert pointer is not None and pointer.version == "p8" and pointer.day == str(DAY)
    leaning = night.layout.model(DAY) / "leanings/2/policy.safetensors"
    assert (night.data / pointer.policy).read_bytes() == leaning.read_bytes()
    assert registry.alias_version(night, registry.CHAMPION) == pointer.model_version
    (event,) = history(night)
    assert event["evidence"]["by"] == "person" and event["evidence"]["factor"] == 2.0
    assert "interaction x2: more likes" in event["reason"]
    rules = {rule["rule"] for rule in decision["rules"]}
    assert rules >= {"parity", "bounds", "jump", "alarm", "trusted", "latency", "size", "loadable", "smoke"}

    before = night.layout.champion.read_bytes()
    again, outcome = take(night)
    assert again["decision"] == "unchanged" and outcome["promoted"]
    assert night.layout.champion.read_bytes() == before and len(history(night)) == 1


def test_a_rerun_of_the_day_leaves_what_a_person_chose(night: Settings) -> None:
    take(night)
    outcome = promote(night, DAY, gate(night, DAY))
    assert not outcome["promoted"] and "chosen by a person: it stays" in outcome["reason"]
    assert outcome["version"] == "p8"


def test_what_is_chosen_can_be_rolled_back_and_then_is_not_chosen_again(
    night: Settings, arrange: Arrange
) -> None:
    arrange(EARLIER, seed=3)
    promote(night, EARLIER, gate(night, EARLIER))
    gains = {"time": interval(-1.0), "interaction": interval(2.0)}
    change(night, over={"static": gains, "p3": gains})
    assert take(night)[1]["promoted"]
    assert rollback(night, "fewer came back")["version"] == "p3"
    decision, outcome = take(night)
    assert not outcome["promoted"] and "was rolled back" in decision["reasons"][0]
    assert read_pointer(night.layout.champion).version == "p3"


def test_a_gain_in_one_part_is_enough_and_in_none_is_refused(night: Settings) -> None:
    promote(night, DAY, gate(night, DAY))  # p1 serves
    for rival in ("static", "p1"):
        gains = {"static": {"time": interval(0.1), "interaction": interval(0.1)}}
        gains["p1"] = gains["static"]
        change(night, over={**gains, rival: {"time": interval(-0.15), "interaction": interval(-3.0)}})
        decision, outcome = take(night)
        assert not outcome["promoted"] and read_pointer(night.layout.champion).version == "p1"
        (reason,) = decision["reasons"]
        assert "in time by -0.05 (-0.15 to +0.05) and interaction by -2.9" in reason
        assert "a gain in neither" in reason
    change(night, over={**gains, "p1": {"time": interval(-3.0), "interaction": interval(0.01)}})
    assert take(night)[1]["promoted"]


@pytest.mark.parametrize(
    ("of_point", "rule"),
    [
        ({"bound_share": 0.9}, "bounds"),
        ({"alarm_reasons": ["value 99 is impossible"]}, "alarm"),
        ({"over": {"static": {"time": interval(1.0), "interaction": interval(1.0)}}}, "champion"),
    ],
)
def test_what_is_asked_of_every_policy_is_asked_of_it(night: Settings, of_point: dict, rule: str) -> None:
    promote(night, DAY, gate(night, DAY))
    change(night, **of_point)
    decision, outcome = take(night)
    assert not outcome["promoted"]
    assert [one["rule"] for one in decision["rules"] if not one["passed"]] == [rule]


def test_a_day_or_factor_that_is_not_there_is_told_in_a_line(night: Settings) -> None:
    with pytest.raises(DataError, match=r"^3 is not among the factors of 2026-01-05: 1, 2$"):
        choose(night, DAY, 3.0, "")
    with pytest.raises(DataError, match="no sweep of 2026-01-04: it takes `mtf day --date 2026-01-04`"):
        swept(night, date(2026, 1, 4))
    change(night, version="another")
    with pytest.raises(DataError, match="not the one that was trained last"):
        choose(night, DAY, 2.0, "")


def test_a_file_that_changed_since_is_not_promoted(night: Settings) -> None:
    path = night.layout.model(DAY) / "leanings/2/policy.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    decision, outcome = take(night)
    assert not outcome["promoted"] and "cannot be served" in decision["reasons"][0]
    assert read_pointer(night.layout.champion) is None and history(night) == []


def test_before_a_canary_it_is_the_challenger_and_a_rerun_leaves_it(night: Settings) -> None:
    careful = night.model_copy(update={"gate": night.gate.model_copy(update={"evidence": "canary"})})
    take(careful)
    trying = read_pointer(careful.layout.challenger)
    assert trying is not None and trying.version == "p8" and read_pointer(careful.layout.champion) is None
    outcome = promote(careful, DAY, gate(careful, DAY))
    assert not outcome["promoted"] and "policy p8 of 2026-01-05 was chosen by a person" in outcome["reason"]
    assert read_pointer(careful.layout.challenger).version == "p8"


def test_killed_before_the_pointer_it_has_changed_nothing_that_serves_and_is_done_again(
    night: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("training.contract.in_service.files.write_text_atomic", _killed)
        with pytest.raises(KeyboardInterrupt):
            take(night)
    assert read_pointer(night.layout.champion) is None
    assert take(night)[1]["promoted"] and read_pointer(night.layout.champion).version == "p8"
    assert len(history(night)) == 1


def _killed(path: Path, pointer: object) -> None:
    raise KeyboardInterrupt
