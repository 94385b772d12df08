"""docs/extending.md, followed to the letter: its blocks are taken from the page, applied and checked."""

import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from tests.dbt_project.conftest import Lake, export, schema
from training import ingest
from training.contract.columns import decision_columns, impression_columns, user_columns
from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.settings import load_settings
from training.validation.stages import validate_landed
from training.warehouse import transform

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
DAY = date(2026, 1, 5)
COLUMNS = {IMPRESSIONS: impression_columns, DECISIONS: lambda _: decision_columns(), USERS: user_columns}


def blocks(section: str, language: str) -> list[str]:
    """Fenced blocks of one language in one section of the page."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, flags=re.S | re.M)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.S | re.M)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A day of a log that has what the three settings' examples add, under these settings."""
    sections = ("A feedback signal", "A head", "A feature of the state")
    (tmp_path / "mtf.yaml").write_text("".join(block for name in sections for block in blocks(name, "yaml")))
    lake = Lake(load_settings(tmp_path / "mtf.yaml"))
    for user in range(40):
        items = [{"is_share": 1, "play_time_ms": 5_000, "duration_ms": 0, "p_share": 0.25}, {}]
        lake.request(f"r{user}", user, f"{DAY}T10:{user:02}:00", f"s{user}", items, action=[0.0] * 5)
        lake.user(user, f"{DAY}T09:00:00", age_group="young", fans_user_num=3.0)
    return lake


def land(lake: Lake, table: str, without: tuple[str, ...] = ()) -> None:
    rows = pa.Table.from_pylist(lake.rows[table, DAY], schema=schema(COLUMNS[table](lake.settings)))
    ingest.land(lake.settings, table, DAY, rows.drop_columns(list(without)), "files")


def test_a_signal_a_head_and_a_profile_column_by_the_settings_alone(lake: Lake) -> None:
    settings = lake.settings
    with pytest.raises(DataError, match="missing column is_share"):
        land(lake, IMPRESSIONS, without=("is_share",))
    for table in COLUMNS:
        land(lake, table)
    record = transform.run(settings, DAY)
    assert record["tests"]["failed"] == record["tests"]["warned"] == 0

    # the signal: 0.8 beside 5 s played, in reward, history, session and the state
    transition, *_ = export(settings, "fct_transitions")
    assert transition["reward"] == pytest.approx(0.8 + 0.02 * 5)
    assert export(settings, "fct_user_history")[0]["hist_share_rate"] == 0.5
    session, *_ = export(settings, "fct_session_state")
    assert session["sess_share_count"] == session["last_share_count"] == 1
    assert export(settings, "fct_policy_daily")[0]["upirate"] == 1.0
    names = settings.state_spec.entry_names
    assert {"hist_share_rate", "sess_share_rate", "last_share_rate"} <= set(names)

    # the head: five scores an item, five weights
    assert transition["item_scores"] == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.25, *[0.5] * 5])
    assert settings.fusion.names[-1] == "share" and len(settings.fusion.static_action) == 5

    # the profile's column
    assert {row["age_group"] for row in export(settings, "dim_users")} == {"young"}
    raw = {column: ["young"] if column == "age_group" else [0.0] for column in _inputs(settings)}
    state = dict(zip(names, settings.state_spec.assemble(raw)[0], strict=True))
    assert (state["age_group=young"], state["age_group=old"]) == (1.0, 0.0)


def _inputs(settings) -> list[str]:
    sources = ("profile", "history", "session", "context")
    return [name for source in sources for name in settings.state_spec.inputs(source)]


def test_validation_holds_the_new_columns(lake: Lake) -> None:
    lake.rows[IMPRESSIONS, DAY][0] |= {"is_share": 2}
    lake.rows[IMPRESSIONS, DAY][1] |= {"p_share": 1.5}
    for table in COLUMNS:
        land(lake, table)
    record = validate_landed(lake.settings, DAY)
    failed = {fault["field"] for suite in record["suites"].values() for fault in suite["failed"]}
    assert not record["success"] and {"is_share", "p_share"} <= failed


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the code that the page changes."""
    for name in ("training", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def apply(folder: Path, patch: str) -> None:
    subprocess.run(
        ["git", "apply", "--recount", "--verbose", "-"], cwd=folder, input=patch, text=True, check=True
    )


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_feature_of_columns_that_are_there(copy: Path) -> None:
    (patch,) = blocks("A feature of the state", "diff")
    apply(copy, patch)
    code = """
import numpy as np
from training.contract.settings import Settings
spec = Settings().state_spec
raw = {n: [None if s == "profile" else 1.0] for s in ("profile", "history", "session", "context")
       for n in spec.inputs(s)}
print(spec.assemble(raw | {"sess_impressions": [20.0]})[0][spec.entry_names.index("sess_impressions")])
"""
    result = run(copy, "-c", code)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(20.0 / (20.0 + 30.0))


@pytest.mark.slow
def test_a_policy(copy: Path) -> None:
    (file,), (patch,) = blocks("A policy", "python"), blocks("A policy", "diff")
    (copy / "training/policies/reward_weighted.py").write_text(file)
    apply(copy, patch)
    result = run(
        *(copy, "-m", "pytest", "-p", "no:cacheprovider", "tests/training/policies/test_learners.py"),
        *("-k", "reward_weighted"),
    )
    assert result.returncode == 0 and re.search(r"^2 passed", result.stdout, re.M), result.stdout
