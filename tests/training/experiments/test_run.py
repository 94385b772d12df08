"""A table is measured to its end, also after a kill, and measured alike each time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from training.contract.errors import MtfError, SettingsError
from training.experiments import load_table, run
from training.experiments.run import Unit, finished, units
from training.experiments.table import SHIPPED, Table

SMALL = Path(__file__).with_name("small.yaml")
RUN = f"""
from pathlib import Path
import sys
from training.experiments import load_table, run
if __name__ == "__main__":
    run(load_table({str(SMALL)!r}), Path(sys.argv[1]))
"""


def measured(table: Table, folder: Path) -> list[Unit]:
    return [unit for unit in units(table) if finished(table, unit, folder)]


@pytest.fixture(scope="module")
def table() -> Table:
    return load_table(SMALL)


@pytest.fixture(scope="module")
def done(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    run(table, folder, workers=2)
    return folder


@pytest.mark.slow
def test_results_hold_every_method_with_intervals(table: Table, done: Path) -> None:
    results = json.loads((done / "results.json").read_text())
    assert results["missing"] == [] and measured(table, done) == units(table)
    rows = results["rows"]["log_sum"]
    for method in table.methods:
        value = rows[method.name]["session_return"]
        assert value["lower"] < value["mean"] < value["upper"] and len(value["values"]) == 2
        assert rows[method.name]["pooled"]["sessions"] == 2 * table.judge.sessions
    assert rows[table.baseline]["session_return_change"]["values"] == [0.0, 0.0]
    assert rows["BatchRL-MTF"]["seed_spread"]["mean"] > 0.0
    text = (done / "results.md").read_text()
    assert all(f"| {method.name} |" in text for method in table.methods)
    names = {path.name for path in (done / "plots").iterdir()}
    assert names == {f"log_sum-{n}.png" for n in ("curves", "returns", "actions", "spread", "estimates")}


@pytest.mark.slow
def test_methods_of_a_seed_are_judged_on_the_same_sessions_and_seeds_are_not(
    table: Table, done: Path
) -> None:
    def users(seed: int, method: str) -> np.ndarray:
        path = Unit("log_sum", seed, method).path(done).with_suffix(".npz")
        with np.load(path, allow_pickle=False) as file:
            return file["user_row"]

    np.testing.assert_array_equal(users(1, "BatchRL-MTF"), users(1, table.baseline))
    assert (users(1, "BatchRL-MTF") != users(2, "BatchRL-MTF")).any()


@pytest.mark.slow
def test_a_finished_table_is_not_measured_again_but_a_changed_method_is(table: Table, done: Path) -> None:
    kept = []
    run(table, done, progress=lambda job, share, what: kept.append(what))
    assert kept == ["kept"] * 4
    methods = (table.methods[0], table.methods[1].model_copy(update={"learner": {"steps": 30}}))
    changed = table.model_copy(update={"methods": methods})
    assert {unit.method for unit in measured(changed, done)} == {table.baseline}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(
    table: Table, done: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(RUN)
    folder = tmp_path / "table"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)
    deadline = time.monotonic() + 300
    while not measured(table, folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2.0)  # its workers end with it
    first = {unit: unit.path(folder).stat().st_mtime_ns for unit in measured(table, folder)}
    assert 0 < len(first) < len(units(table))

    run(table, folder, workers=1)
    for unit, written in first.items():
        assert unit.path(folder).stat().st_mtime_ns == written
    for unit in units(table):
        with (
            np.load(unit.path(folder).with_suffix(".npz")) as one,
            np.load(unit.path(done).with_suffix(".npz")) as other,
        ):
            for name in other.files:
                np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.slow
def test_a_failing_unit_is_named_and_the_others_are_kept(table: Table, done: Path, tmp_path: Path) -> None:
    methods = (table.methods[0], table.methods[1].model_copy(update={"learner": {"critic_lr": 1e30}}))
    broken, folder = table.model_copy(update={"methods": methods}), tmp_path / "table"
    shutil.copytree(done, folder)
    with pytest.raises(MtfError, match=r"2 of the table's jobs failed(.|\n)*seed 1 / BatchRL-MTF"):
        run(broken, folder)
    assert {unit.method for unit in measured(broken, folder)} == {table.baseline}
    assert len(json.loads((folder / "results.json").read_text())["missing"]) == 2


@pytest.mark.parametrize("name", [path.stem for path in SHIPPED.glob("*.yaml")])
def test_shipped_tables_load_and_have_five_seeds(name: str) -> None:
    assert len(load_table(name).seeds) >= 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "nobody"}, "is no method"),
        ({"seeds": [1, 1]}, "named twice"),
        ({"methods": [{"name": "x", "kind": "bayesian"}]}, "budget_sessions"),
        ({"methods": [{"name": "x", "kind": "learner", "log": "other"}], "baseline": "x"}, "no log 'other'"),
        ({"settings": {"learner": {"stepss": 3}}}, "worlds.log_sum.settings: learner.stepss"),
        ({"worlds": {"w": {"ranking": {"seed": 3}}}}, "may change fusion_form"),
        ({"logs": {"mixed": {"sessions": 9, "random": 0.0, "noise": 0.0}}}, "must be above 0"),
    ],
)
def test_a_wrong_table_is_refused_with_the_place(change: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SMALL.read_text()) | change))
    with pytest.raises(SettingsError, match=message):
        load_table(path)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"explore": "box", "learner": {"algorithms": ["unified_rl"]}}, "belongs to rounds"),
        ({"explore": "cells", "rounds": 2}, "belongs to the algorithm xmtf"),
    ],
)
def test_exploring_otherwise_is_for_rounds(method: dict, message: str, tmp_path: Path) -> None:
    path, values = tmp_path / "wrong.yaml", yaml.safe_load(SMALL.read_text())
    values["methods"].append({"name": "x", "kind": "learner", **method})
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(SettingsError, match=message):
        load_table(path)
