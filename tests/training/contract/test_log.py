"""The log's contract: a line has its declared fields, and every table made of it has them, too."""

from datetime import date
from pathlib import Path

import pytest

from training.contract import log, transitions
from training.contract.columns import decision_columns


@pytest.mark.parametrize(
    ("write", "declared"),
    [(log.decision_line, log.DECISION_LINE), (log.feedback_line, log.FEEDBACK_LINE)],
)
def test_a_line_has_the_declared_fields_in_their_order(write, declared):
    fields = {column.name: column.name for column in reversed(declared) if column.name != "v"}
    line = write(**fields)
    assert list(line) == [column.name for column in declared]
    assert line == {"v": log.LINE_VERSION, **fields}
    missing, *_ = fields
    for wrong in ({**fields, "sesion_id": "S"}, {n: v for n, v in fields.items() if n != missing}):
        with pytest.raises(TypeError, match="a line has the fields request_id, "):
            write(**wrong)


def test_the_lake_keeps_every_field_of_a_decision_but_what_becomes_impressions():
    kept = [column for column in log.DECISION_LINE if column.name not in ("v", "items", "shown", "scores")]
    assert decision_columns() == kept


def test_a_decision_has_the_lakes_fields_and_no_other():
    fields = {column.name: column.name for column in log.DECISION}
    assert log.decision(**fields) == fields
    for wrong in ({**fields, "v": 1}, {n: v for n, v in fields.items() if n != "epoch"}):
        with pytest.raises(TypeError, match="a line has the fields request_id, "):
            log.decision(**wrong)


def test_what_was_decided_has_one_name_and_type_from_the_line_to_the_transition():
    columns = {column.name: column for column in transitions.TRANSITION}
    assert len(columns) == len(transitions.TRANSITION)
    decided = {column.name: column for column in log.DECISION}
    # how new its features were is for parity alone to know
    assert decided.keys() - columns.keys() == {"features_until"}
    assert all(columns[name].type == decided[name].type for name in decided.keys() & columns.keys())
    assert {*transitions.OF_EVERY_LEARNER, *transitions.OF_SOME_LEARNERS} < columns.keys()


def test_arms_and_fallbacks_are_names_of_their_own():
    assert len({*log.ARMS}) == len(log.ARMS) and {*log.MIXED_ARMS} < {*log.EXPLORING} < {*log.ARMS}
    assert len({*log.FALLBACKS}) == len(log.FALLBACKS) and {*log.POLICY_FAILURES} < {*log.FALLBACKS}


def test_a_file_is_found_by_its_day_and_says_it(tmp_path: Path):
    names = [log.file_name(day, "w1-ab", 3) for day in ("2026-01-05", "2026-01-06")]
    for name in (*names, "2026-01-05.txt"):
        (tmp_path / name).touch()
    assert log.files_of(tmp_path, date(2026, 1, 5)) == [tmp_path / names[0]]
    assert [log.day_of(tmp_path / name) for name in names] == [date(2026, 1, 5), date(2026, 1, 6)]
