"""No stage of a day reads a setting that is not in its fingerprint."""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dags import inputs, stages
from tests.end_to_end import small_days
from training.contract import in_service
from training.contract.settings.section import Section

pytestmark = pytest.mark.slow
(DAY,) = small_days.days(1)
PLACE = {"data", "version", "log_folder"}  # records lie in the data folder that they speak of


def watched(values: BaseModel, read: set[str], section: str = "") -> Any:
    """The same values, which note what is read of them: ``section.entry``, or a section as a whole."""
    kind = type(values)

    def noting(self: BaseModel, name: str) -> Any:
        value = kind.__getattribute__(self, name)
        if section and name in ("model_copy", "model_dump"):
            note(section, read)
        elif name in kind.model_fields and name not in PLACE and (section or not isinstance(value, Section)):
            note(f"{section}.{name}" if section else name, read)
        return value

    entries = {name: getattr(values, name) for name in kind.model_fields}
    if not section:
        entries = {n: watched(v, read, n) if isinstance(v, Section) else v for n, v in entries.items()}
    return type(kind.__name__, (kind,), {"__getattribute__": noting}).model_construct(**entries)


def note(name: str, read: set[str]) -> None:
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_filename != inputs.__file__:  # which the gate asks, too
        frame = frame.f_back
    if frame is None:
        read.add(name)


def test_a_stage_reads_no_setting_that_is_not_in_its_fingerprint(tmp_path: Path, monkeypatch):
    read: dict[str, set[str]] = defaultdict(set)
    for stage, function in list(stages.FUNCTIONS.items()):
        monkeypatch.setitem(
            stages.FUNCTIONS,
            stage,
            lambda settings, day, stage=stage, function=function: function(
                watched(settings, read[stage]), day
            ),
        )
    # the first day of this world brings its users: no state was served that the store could have known
    settings = small_days.write_settings(tmp_path, {"gate": {"max_parity_mismatch": 1.0}})
    small_days.land_world(settings, [DAY])
    assert stages.run_day(settings, DAY) == list(stages.DAY_STAGES)
    # once shares have changed it matters whose clock the log's times are of
    shares = settings.serving.shares.model_dump()
    with in_service.changing(settings) as row:
        row.append({"action": "shares", "shares": shares, "reason": "test"})
    stages.run_stage(settings, DAY, "validate_landed", force=True)
    for stage in stages.DAY_STAGES:
        known = set(inputs._SETTINGS[stage])
        unknown = {name for name in read[stage] if not known & {name, name.partition(".")[0]}}
        assert read[stage] and not unknown, stage
    entries = {(stage, name) for stage in read for name in inputs._SETTINGS[stage] if "." in name}
    assert {(stage, name) for stage, name in entries if name not in read[stage]} == set()
