"""CSV files, plain or .gz, as Arrow: typed, streamed, and refused with file, row and column."""

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc_csv

from training.contract.errors import DataError


def read_batches(
    path: Path, types: Mapping[str, pa.DataType], columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of a CSV in the file's order; an empty field is null.

    ``columns`` are the ones to read, all of which must be there; None reads all that the file has.
    Raises :class:`DataError` for a file that is missing, empty, truncated or no CSV, a missing column,
    the first line that is not UTF-8, and the first value that is not of its column's type.
    """
    try:
        yield from pc_csv.open_csv(path, convert_options=_options(types, columns))
    except KeyError as error:
        with pc_csv.open_csv(path) as reader:
            names = reader.schema.names
        missing = [name for name in columns or [] if name not in names]
        message = f"{path}: missing column {', '.join(missing)}; it has {', '.join(names)}"
        raise DataError(message, breaks="columns") from error
    except (pa.ArrowException, OSError) as error:
        if "invalid UTF8" in str(error):
            _name_bad_text(path)
        if "conversion error" in str(error):
            _name_bad_value(path, types)
        raise DataError(f"{path}: unreadable CSV: {error}", breaks="readable") from error


def read_table(path: Path, types: Mapping[str, pa.DataType], columns: list[str] | None = None) -> pa.Table:
    """:func:`read_batches` as one table."""
    return pa.Table.from_batches(list(read_batches(path, types, columns)))


def _options(types: Mapping[str, pa.DataType], columns: list[str] | None) -> pc_csv.ConvertOptions:
    return pc_csv.ConvertOptions(
        column_types=dict(types),
        include_columns=columns,
        strings_can_be_null=True,
        null_values=["", "nan", "NaN"],
    )


def _name_bad_value(path: Path, types: Mapping[str, pa.DataType]) -> None:
    """Raise :class:`DataError` for the first value that does not cast from its text."""
    texts = dict.fromkeys(types, pa.string())
    row = 0
    for batch in pc_csv.open_csv(path, convert_options=_options(texts, None)):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name not in types:
                continue
            try:
                column.cast(types[name])
            except pa.ArrowInvalid:
                bad = next(i for i in range(len(column)) if not _casts(column[i], types[name]))
                raise DataError(
                    f"{path}, row {row + bad + 1}: column {name} is {column[bad].as_py()!r}, "
                    f"expected {types[name]}",
                    breaks="types",
                ) from None
        row += batch.num_rows


def _name_bad_text(path: Path) -> None:
    """Raise :class:`DataError` for the first line that is not UTF-8."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                message = f"{path}, line {number}: not UTF-8 at byte {error.start + 1}: write it as UTF-8"
                raise DataError(message, breaks="readable") from None


def _casts(value: pa.Scalar, target: pa.DataType) -> bool:
    try:
        value.cast(target)
    except pa.ArrowInvalid:
        return False
    return True
