"""What a benchmark leaves: its results as JSON and, with ``--publish``, as a page of ``docs/results``.

Either says the command, the date, the machine and the versions. A benchmark has a ``tables(results)`` of its
own where :func:`nested` would be hard to read.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import fill
from typing import Any

from training.contract.files import read_json, write_json_atomic, write_text_atomic

PAGES = Path(__file__).parents[2] / "docs" / "results"
DEFAULTS = {"out": Path("build/bench"), "publish": False}


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--out`` and ``--publish``, whose :data:`DEFAULTS` are the outermost parser's."""
    suppress = argparse.SUPPRESS  # else a parser within would set what was given before its name
    parser.add_argument("--out", type=Path, default=suppress, help="folder of the JSON; build/bench")
    parser.add_argument(
        "--publish", action="store_true", default=suppress, help="also write the page docs/results/NAME.md"
    )


def keep(
    name: str,
    title: str,
    results: Any,
    arguments: argparse.Namespace,
    tables: Callable[[Any], str] | None = None,
) -> None:
    """Write ``<out>/<name>.json`` and, with ``--publish``, the page."""
    from training.experiments.pages import header, provenance  # not above: it would import PyTorch everywhere

    facts = provenance(command())
    path = arguments.out / f"{name}.json"
    write_json_atomic(path, facts | {"results": results})
    print(f"wrote {path}")
    if arguments.publish:
        page = PAGES / f"{name}.md"
        write_text_atomic(page, f"# {title}\n\n{header(facts)}\n\n{(tables or nested)(results).strip()}\n")
        print(f"wrote {page}")


def kept(path: Path, made_from: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives (plain JSON), kept in ``path``: not made again where it was made from the same."""
    if not is_kept(path, made_from):
        write_json_atomic(path, {"made_from": made_from, "found": make()})
    return read_json(path)["found"]


def is_kept(path: Path, made_from: str) -> bool:
    return path.is_file() and read_json(path)["made_from"] == made_from


def command() -> str:
    """As this process was called, without what says where its results go."""
    main = sys.modules["__main__"].__spec__
    module = "tests.benchmarks" if main is None else main.name.removesuffix(".__main__")
    words, arguments = ["python", "-m", module], iter(sys.argv[1:])
    for word in arguments:
        if word == "--out":
            next(arguments, None)
        elif word != "--publish" and not word.startswith("--out="):
            words.append(word)
    return " ".join(words)


def prose(text: str) -> str:
    """A paragraph, with a blank line after it."""
    return fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n\n"


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table of Markdown, with a blank line after it."""
    lines = [[str(column) for column in columns]]
    lines += [["---"] * len(lines[0]), *([cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def cell(value: Any) -> str:
    if value is None:
        return ""
    if value in ({}, []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(one) for one in value)
    return str(value).replace("|", "/")


def nested(results: Any, heading: str = "") -> str:
    """Any JSON as tables: its single values, then what is nested as rows × columns, or a section each."""
    named = _named(results)
    single = {name: value for name, value in named.items() if not _is_nested(value)}
    deeper = {name: _named(value) for name, value in named.items() if name not in single}
    text = f"## {heading}\n\n" if heading and single else ""
    if single:
        text += table(["", "value"], single.items())
    if deeper and not any(_is_nested(value) for one in deeper.values() for value in one.values()):
        columns = list(dict.fromkeys(name for one in deeper.values() for name in one))
        text += f"## {heading}\n\n" if heading and not single else ""
        text += table(
            ["", *columns], ([name, *(one.get(c) for c in columns)] for name, one in deeper.items())
        )
    else:
        for name, one in deeper.items():
            text += nested(one, f"{heading}: {name}" if heading else str(name))
    return text


def _is_nested(value: Any) -> bool:
    return (isinstance(value, dict) and bool(value)) or (
        isinstance(value, list) and any(_is_nested(one) for one in value)
    )


def _named(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {str(number): one for number, one in enumerate(value, 1)}
