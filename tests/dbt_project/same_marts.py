"""Every table of two warehouses against each other, bit for bit, whichever engines made them.

python -m tests.dbt_project.same_marts one.yaml other.yaml
"""

# ruff: noqa: S608 -- SQL is composed of the tables' own names

import sys
from pathlib import Path

from training.contract.settings import Settings, load_settings
from training.warehouse.engines import engine_of

Table = tuple[dict[str, str], list[str]]  # types by column, and each row as text that says every bit


def tables(settings: Settings) -> dict[str, Table]:
    """By name; one without rows is left out, which Spark keeps no files of."""
    found = {}
    with engine_of(settings).connect() as (connection, names):
        for name in sorted(names):
            read = connection.sql(f"select * from main.{name}")
            order = sorted(column for column in read.columns if column != "dt")
            columns = ["dt", *order]  # Spark puts the column of its folders last
            listed = ", ".join(f'"{column}"' for column in columns)
            arrow = connection.sql(f"select {listed} from main.{name} order by all").to_arrow_table()
            rows = zip(*(arrow[column].to_pylist() for column in columns), strict=True)
            types = dict(zip(read.columns, map(str, read.types), strict=True))
            found[name] = (
                types,
                [repr(row) for row in rows],
            )  # of a float the shortest text that is it alone
    return {name: table for name, table in found.items() if table[1]}


def differences(one: Settings, other: Settings) -> list[str]:
    """A line a difference: a table that one has, types, numbers of rows, and the first rows that differ."""
    left, right = tables(one), tables(other)
    said = [f"{name}: has rows in one of the two" for name in sorted(left.keys() ^ right.keys())]
    for name in sorted(left.keys() & right.keys()):
        (types, rows), (other_types, other_rows) = left[name], right[name]
        for column in sorted(types.keys() | other_types.keys()):
            if types.get(column) != other_types.get(column):
                said.append(f"{name}.{column}: {types.get(column)}, and {other_types.get(column)}")
        if len(rows) != len(other_rows):
            said.append(f"{name}: {len(rows)} rows, and {len(other_rows)}")
        pairs = [pair for pair in zip(rows, other_rows, strict=False) if pair[0] != pair[1]]
        said += [f"{name}: {len(pairs)} of {len(rows)} rows differ; {a} | {b}" for a, b in pairs[:1]]
    return said


if __name__ == "__main__":
    found = differences(*(load_settings(Path(path)) for path in sys.argv[1:3]))
    print("\n".join(found) or "the same")
    sys.exit(bool(found))
