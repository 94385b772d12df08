"""What a value of a file means: one reading for text, as CSV has it, and for Parquet's types.

A reading is SQL over a column of a file: ``value``, of the wanted type and null where there is none, and
``bad``, true where something is there that is no such value. Nothing is rounded, cut or guessed: ``46.0``
is 46 because nothing is lost by it, 46.5 is refused, and so is a whole number that a float may have rounded.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own names

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from training.contract.errors import DataError
from training.ingest.landing import connect

TOKENS = ("", "null", "\\n")  # lower case; text that is an absent value, whatever the column
NO_VALUE = (*TOKENS, "nan", "none", "na", "n/a", "<na>", "nat")  # in a column that is no text
_YES, _NO = ("true", "t", "yes", "y"), ("false", "f", "no", "n")
_WHOLE = r"[+-]?[0-9]+(\.0*)?"
_NUMBER = r"(?i)[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf(inity)?"
EXACT = {"float": 1 << 24, "halffloat": 1 << 11}  # beyond it a float no longer holds every whole number
IDS = ("user_id", "item_id")

SQL_TYPES = {
    "string": "VARCHAR",
    "int8": "TINYINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "uint64": "UBIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "list<item: float>": "FLOAT[]",
}


@dataclass(frozen=True)
class Reading:
    """SQL of a column's value, and of whether what is there is none."""

    value: str
    bad: str


def typed(
    source: pa.Table, types: Mapping[str, pa.DataType], in_csv: bool = True
) -> tuple[pa.Table, dict[str, pa.ChunkedArray]]:
    """The columns that ``types`` names, under these types; and of those with bad values, in which rows."""
    selected = []
    for place, (name, target) in enumerate(types.items()):
        one = reading(name, f"c{place}", source.schema.field(name).type, target, in_csv)
        selected.append(f'{one.value} as "{name}", coalesce({one.bad}, false) as "bad {name}"')
    if not selected:
        return pa.table({}), {}
    with connect() as connection:
        columns = {f"c{n}": for_duckdb(source[name]) for n, name in enumerate(types)}
        connection.register("source", pa.table(columns))
        read = connection.sql(f"select {', '.join(selected)} from source").to_arrow_table()
    bad = {name: read[f"bad {name}"] for name in types}
    rows = pa.table({name: read[name].cast(target) for name, target in types.items()})
    return rows, {name: mask for name, mask in bad.items() if pc.any(mask).as_py()}


def for_duckdb(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column, with floats of 16 bits as those of 32, which hold the same; DuckDB knows none of 16."""
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    if _is_list(column.type) and pa.types.is_float16(column.type.value_type):
        return column.cast(pa.list_(pa.float32()))
    return column


def refuse_bad(
    path: Path,
    source: pa.Table,
    types: Mapping[str, pa.DataType],
    bad: Mapping[str, pa.ChunkedArray],
    called: Callable[[str], str] = str,
) -> None:
    """Raise :class:`DataError` for the first row with a bad value, where there is one."""
    rows = {name: pc.index(mask, True).as_py() for name, mask in bad.items()}
    for name, row in sorted(rows.items(), key=lambda one: one[1]):
        message = told(path, row, name, source[name][row], types[name], called(name))
        raise DataError(message, breaks="types")


def told(path: Path, row: int, name: str, value: pa.Scalar, target: pa.DataType, called: str = "") -> str:
    """One line: where a value is that is none of its column's, what was expected and what to do."""
    return (
        f"{path}, row {row + 1}: column {called or name} is {shown(value)}, expected {target}: "
        f"{_advice(name, value, target)}"
    )


def shown(value: pa.Scalar) -> str:
    """A value as a message has it; Python's own dates end where Arrow's do not."""
    try:
        content = value.as_py()
    except (ValueError, OverflowError):
        content = value.value
    return repr(content) if is_text(value.type) else f"{content} ({value.type})"


def reading(name: str, column: str, found: pa.DataType, target: pa.DataType, in_csv: bool = True) -> Reading:
    """How the column ``name``, of type ``target``, is read from ``column`` of the type ``found``.

    Times are read by :mod:`training.ingest.times`.
    """
    sql = SQL_TYPES[str(target)]
    if is_text(found) and pa.types.is_string(target):
        there = f"lower({column}) not in ({listed(TOKENS)})"
        return Reading(f"case when {there} then {column} end" if in_csv else column, "false")
    if is_text(found):
        column = f"trim({column})"
    if pa.types.is_null(found):
        return Reading(f"null::{sql}", "false")
    if is_text(found):
        return _of_text(name, column, target, sql)
    if pa.types.is_list(target):
        return _cast(column, sql) if _is_list(found) and is_number(found.value_type) else _never(column, sql)
    if pa.types.is_boolean(found):
        fits = str(target) in ("int8", "float", "double", "string") and name not in IDS
        return Reading(f"{column}::{sql}", "false") if fits else _never(column, sql)
    if not is_number(found):
        return _never(column, sql)
    if pa.types.is_integer(target) or (pa.types.is_string(target) and not pa.types.is_integer(found)):
        return _of_number(name, column, found, target, sql)
    return _cast(column, sql)


def is_text(found: pa.DataType) -> bool:
    return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)


def _is_list(found: pa.DataType) -> bool:
    return pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)


def is_number(found: pa.DataType) -> bool:
    return pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)


def _cast(column: str, sql: str) -> Reading:
    value = f"try_cast({column} as {sql})"
    return Reading(value, f"{value} is null and {column} is not null")


def _never(column: str, sql: str) -> Reading:
    return Reading(f"null::{sql}", f"{column} is not null")


def _of_text(name: str, column: str, target: pa.DataType, sql: str) -> Reading:
    if pa.types.is_list(target):
        return _never(column, sql)
    there = f"({column} is not null and lower({column}) not in ({listed(NO_VALUE)}))"
    if not pa.types.is_integer(target):
        value = (
            f"case when regexp_full_match({column}, '{_NUMBER}') then try_cast({column}::DOUBLE as {sql}) end"
        )
        return Reading(value, f"{there} and ({value}) is null")
    whole = f"try_cast(regexp_replace({column}, '\\.0*$', '') as {sql})"
    # two ids may be one as numbers: 007 and 7
    zeros = f" and not regexp_matches({column}, '^[+-]?0[0-9]')" if name in IDS else ""
    cases = f"when regexp_full_match({column}, '{_WHOLE}'){zeros} then {whole}"
    if str(target) == "int8":
        cases += f" when lower({column}) in ({listed(_YES)}) then 1"
        cases += f" when lower({column}) in ({listed(_NO)}) then 0"
    return Reading(f"case {cases} end", f"{there} and (case {cases} end) is null")


def _of_number(name: str, column: str, found: pa.DataType, target: pa.DataType, sql: str) -> Reading:
    """A whole number, or its text, from a float or a decimal that holds it exactly; NaN is null."""
    if pa.types.is_integer(found):
        return _cast(column, sql)
    there = f"{column} is not null"
    exact = f"{column} = floor({column})"
    if pa.types.is_floating(found):
        there = f"({there} and not isnan({column}))"
        exact = f"(isfinite({column}) and {exact} and abs({column}) < {EXACT.get(str(found), 1 << 53)})"
    whole = f"try_cast({column} as {'HUGEINT' if pa.types.is_string(target) else sql})"
    value = f"case when {exact} then {whole}::{sql} end"
    if pa.types.is_string(target) and name not in IDS:  # 4.0 and 4 are one category; 4.5 is another
        value = f"case when {there} then coalesce({value}, {column}::VARCHAR) end"
    return Reading(value, f"{there} and ({value}) is null")


def listed(words: tuple[str, ...]) -> str:
    return ", ".join(f"'{word}'" for word in words)


def _advice(name: str, value: pa.Scalar, target: pa.DataType) -> str:
    found, text = value.type, str(value.as_py()).strip()
    setting = f"ids.{'users' if name == 'user_id' else 'items'}"
    if name in IDS and is_text(found) and text.isdigit() and text.startswith("0"):
        told = "an id with leading zeros is text, and as numbers two such ids may be one"
        return f"{told}: set {setting}: string"
    if name in IDS and pa.types.is_integer(found):
        if str(target) == "uint64":
            return f"{setting} is uint64, whose ids are 0 or more"
        return f"ids are whole numbers below 2^63: set {setting}: uint64"
    if name in IDS and is_text(found) and text.isdigit():
        unsigned = len(text) <= 20 and int(text) < 1 << 64 and str(target) != "uint64"
        return f"it is too large for {target}: set {setting}: {'uint64' if unsigned else 'string'}"
    if pa.types.is_floating(found) and pa.types.is_integer(target) and text.endswith(".0"):
        limit = EXACT.get(str(found), 1 << 53)
        return f"a {found} does not hold every whole number from {limit} on, so two may be one: bring int64"
    if pa.types.is_list(target):
        return "CSV holds no lists: bring Parquet" if is_text(found) else "bring a list of numbers"
    if is_text(found):
        if text == name:
            return "a header again, as of files that were joined: take the line out"
        if "," in text and text.replace(",", "").replace(".", "").lstrip("+-").isdigit():
            return "write numbers with a point, and thousands without a separator"
        if pa.types.is_integer(target) and re.fullmatch(_NUMBER, text) and "e" in text.lower():
            return "a whole number in this form has lost digits: write all of them"
    if name in IDS:
        return f"where ids are not whole numbers, set {setting}: string"
    if str(target) == "int8":
        return "write 0 or 1, or true or false"
    return "write a whole number" if pa.types.is_integer(target) else "write a number"
