"""Messages for people: a line each, of bounded length, whatever a file has in it."""

import pickle

import pytest

from training.contract.errors import DataError, MtfError, SettingsError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("a\r\tb", r"a\r\tb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("next\u2028line", r"next\u2028line"),
        ("half \ud800", r"half \ud800"),
        ("Größe 😀", "Größe 😀"),
    ],
)
def test_a_value_in_a_message_is_one_line(value: str, shown: str) -> None:
    error = DataError(f"a.csv, row 3: column x is {value}: write a number", breaks="types")
    assert str(error) == f"a.csv, row 3: column x is {shown}: write a number"
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 -- it is ours
    assert str(again) == str(error) and again.breaks == "types"


def test_of_a_long_value_begin_and_advice_are_kept() -> None:
    told = str(DataError(f"a.csv, row 3: column x is {'v' * 100_000}: write a number"))
    assert told.startswith("a.csv, row 3: column x is vvv") and told.endswith("vvv: write a number")
    assert len(told) < 2_100


def test_several_faults_are_a_line_each() -> None:
    assert str(SettingsError("a: wrong", "b\n: wrong")) == "a: wrong\nb\\n: wrong"
    assert str(MtfError()) == ""
