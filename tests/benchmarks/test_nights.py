"""The benchmark nights end to end, at a tiny size, and how its page counts."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.nights_page import longest_run, tables
from training.contract.files import read_json

ROOT = Path(__file__).parents[2]


def night(champion: str, below: float) -> dict:
    return {
        "champion_is": champion,
        "champion": 20.0,
        "constant": 21.0,
        "below_best": {"lower": below - 0.01, "value": below, "upper": below + 0.01},
        "below_static": {"lower": -0.01, "value": 0.0, "upper": 0.01},
        "events": [],
    }


def test_a_run_is_of_one_champion_that_was_promoted() -> None:
    a = [night("a", 0.03)] * 3
    assert longest_run([*a, night("b", 0.03), night("b", 0.01), *a[:2]]) == 3
    assert longest_run([night("static", 0.2)] * 4) == 0
    world = {"sessions_a_day": 900, "explored": 0.1, "static": 20.0, "nights": [*a, night("static", 0.2)]}
    page = tables({"worlds": [world], "users": 9, "most": 900, "truth": 10})
    assert "**On 3 nights a promoted champion" in page and "for 3 nights at most" in page.replace("\n", " ")


@pytest.mark.slow
def test_the_command_passes_nights_and_keeps_what_it_has_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "nights", "--out", str(tmp_path)]
    command += ["--worlds", "1", "--nights", "3", "--truth", "200", "--most", "1200"]
    first = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "world 0" in first.stdout
    (world,) = read_json(tmp_path / "nights.json")["results"]["worlds"]
    assert len(world["nights"]) == 3 and 400 <= world["sessions_a_day"] <= 1_200
    for one in world["nights"]:
        assert one["gate"] in ("promote", "refuse", "unchanged")
        assert 15.0 < one["champion"] < 35.0 and 15.0 < one["constant"] < 35.0
        if one["champion_is"] == "static":
            assert one["champion"] == world["static"] and one["below_static"]["value"] == 0.0
    again = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "world 0" not in again.stdout
