"""Text files with separated values, as Arrow tables of text; DuckDB's reader takes them by RFC 4180.

What a value means is not said here (:mod:`training.ingest.values`). A line that is no row of the file's
columns is never left out: the file is refused, with the first such line.
"""

import csv
import glob
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from training.contract.errors import DataError, StorageError
from training.contract.files import writing

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}  # by their first bytes
_NOT_TEXT = {
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "Parquet, not CSV",
    b"PK\x03\x04": "a workbook or a zip archive, not CSV",
}
_SEPARATOR_LINE = re.compile(r'"?sep=([,;|])"?', re.IGNORECASE)  # that Excel writes before a header
_SHOWN = 120  # characters of a line that a message shows
_REJECTED = """
select line, line_byte_position - 1, error_type, csv_line
from reject_errors order by line, byte_position limit 1
"""


@dataclass(frozen=True)
class Header:
    """A file's column names as they stand there, what separates them, and the lines up to their end."""

    names: tuple[str, ...]
    separator: str
    lines: int


@contextmanager
def open_text(path: Path, known: Collection[str]) -> Iterator[tuple[Path, Header]]:
    """The file without its compression (in a scratch folder where it has one), and its header.

    Of the separators, the one by which most of the ``known`` names are in the header is the file's. Raises
    :class:`DataError` for a file that is missing, empty, truncated, or no UTF-8 text.
    """
    with tempfile.TemporaryDirectory(prefix="mtf-csv-") as scratch:
        plain = _decompressed(path, Path(scratch))
        yield plain, _header(path, plain, known)


def read_text(path: Path, known: Collection[str]) -> tuple[Header, pa.Table]:
    """The header, and the rows as text: columns ``c0``, ``c1`` … in its order; an empty field is null.

    Raises :class:`DataError` as :func:`open_text`, and naming the first line that is not one value a column,
    or whose quotes do not match.
    """
    with open_text(path, known) as (plain, header), duckdb.connect() as connection:
        try:
            rows = connection.sql(scan(plain, header)).to_arrow_table()
        except duckdb.Error as error:
            raise unreadable(path, error) from error
        refuse_broken_lines(connection, path, plain, header)
    return header, rows


def refuse_broken_lines(
    connection: duckdb.DuckDBPyConnection, path: Path, plain: Path, header: Header
) -> None:
    """Raise :class:`DataError` for the first line that the last :func:`scan` found to be no row."""
    for line, start, kind, text in connection.execute(_REJECTED).fetchall():
        if kind == "INVALID ENCODING":
            with plain.open("rb") as file:
                file.seek(start)
                _text(path, file.readline(), line)
        raise DataError(_broken_line(path, plain, header, line, kind, text), breaks="readable")


def scan(plain: Path, header: Header) -> str:
    """SQL: the rows of an uncompressed file, as text; what is no row goes to DuckDB's ``reject_errors``."""
    columns = ", ".join(f"'c{n}': 'VARCHAR'" for n in range(len(header.names)))
    return (
        f"from read_csv({_quoted(glob.escape(str(plain)))}, header = false, skip = {header.lines}, "
        f"auto_detect = false, delim = {_quoted(header.separator)}, quote = '\"', escape = '\"', "
        f"columns = {{{columns}}}, strict_mode = true, store_rejects = true, max_line_size = 16777216)"
    )


def _decompressed(path: Path, scratch: Path) -> Path:
    """DuckDB reads a cut zstd file without a word, so files are unpacked before it sees them."""
    try:
        with path.open("rb") as file:
            first = file.read(4)
        codec = next((name for magic, name in COMPRESSED.items() if first.startswith(magic)), None)
        if codec is None:
            return path
        plain = scratch / "plain.csv"
        with (
            writing(plain),
            pa.input_stream(str(path), compression=codec) as source,
            plain.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 20)
    except StorageError:
        raise
    except PermissionError as error:
        raise DataError(f"{path}: unreadable: permission denied", breaks="readable") from error
    except (OSError, pa.ArrowException) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: unreadable CSV: {why}; is it cut off? Bring it again", breaks="readable"
        ) from error
    return plain


def _header(path: Path, plain: Path, known: Collection[str]) -> Header:
    lines, said = 0, None
    with plain.open("rb") as file:
        first = file.read(4)
        for magic, what in _NOT_TEXT.items():
            if first.startswith(magic):
                raise DataError(f"{path}: it is {what}: write it as CSV in UTF-8", breaks="readable")
        file.seek(0)
        for raw in file:
            lines += 1
            if b"\x00" in raw:
                message = f"{path}, line {lines}: zero bytes, as of UTF-16: write it as CSV in UTF-8"
                raise DataError(message, breaks="readable")
            text = _text(path, raw, lines)
            if not text.strip():
                continue
            found = None if said else _SEPARATOR_LINE.fullmatch(text.strip())
            if found is None:
                break
            said = found
        else:
            raise DataError(f"{path}: an empty file, without a header", breaks="readable")
    if "\r" in text.strip("\r\n"):  # line ends of old Macs: the whole file is one line to Python
        text = text.strip("\r\n").partition("\r")[0]
    known = {name.casefold() for name in known}

    def names(separator: str) -> tuple[str, ...]:
        row = next(csv.reader([text.strip("\r\n")], delimiter=separator), [])
        return tuple(name.strip() for name in row)

    def fit(separator: str) -> tuple[int, int]:
        found = names(separator)
        return sum(name.casefold() in known for name in found), len(found)

    separator = max(SEPARATORS, key=fit) if said is None else said[1]
    return Header(names(separator), separator, lines)


def _text(path: Path, raw: bytes, line: int) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        message = f"{path}, line {line}: not UTF-8 at byte {error.start + 1}: write it as UTF-8"
        raise DataError(message, breaks="readable") from None


def _broken_line(path: Path, plain: Path, header: Header, line: int, kind: str, text: str) -> str:
    where, shown = f"{path}, line {line}", repr(text[:_SHOWN] + ("…" if len(text) > _SHOWN else ""))
    if kind == "UNQUOTED VALUE":
        told = f"{where}: a quote begins a value and does not end it: {shown}"
        return f"{told}. Write a quote within a value twice"
    if kind in ("MISSING COLUMNS", "TOO MANY COLUMNS"):
        found = len(next(csv.reader([text], delimiter=header.separator), []))
        told = f"{where}: Expected {len(header.names)} columns, got {found}: {shown}. "
        if line == header.lines + 1 and len(header.names) == 1:
            return f"{told}Is line {header.lines}, {header.names[0]!r}, no header? Take it out"
        if kind == "TOO MANY COLUMNS":
            return told + f"Quote values that hold a {SEPARATORS[header.separator]}"
        if _is_last(plain, text):
            return told + "The file is cut off there: bring it again"
        return told + "Mend the line"
    return f"{where}: unreadable CSV ({kind.lower()}): {shown}"


def _is_last(plain: Path, text: str) -> bool:
    with plain.open("rb") as file:
        file.seek(max(0, plain.stat().st_size - len(text.encode()) - 2))
        return file.read().decode("utf-8", "replace").rstrip("\r\n").endswith(text.rstrip("\r\n"))


def unreadable(path: Path, error: duckdb.Error) -> DataError:
    """Of a file that DuckDB's reader gave up on."""
    told = str(error).splitlines()[0]
    if "invalid state" in told:
        told = (
            "its lines end in different ways (\\n, \\r\\n, \\r), or a quote is out of place: "
            "write it anew with one kind of line end"
        )
    return DataError(f"{path}: unreadable CSV: {told}", breaks="readable")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
