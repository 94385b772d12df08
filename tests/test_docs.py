"""The docs lead somewhere, name what exists, and are written as CONTRIBUTING asks.

`make docs` checks the links within ``docs``; here are those of the pages at the root, and the words.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify
from pydantic import BaseModel
from typer.main import get_command

from dags.command_line.main import app
from training.contract.columns import decision_columns, impression_columns, user_columns
from training.contract.settings import Settings

ROOT = Path(__file__).parents[1]
OUTER = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
WITHIN = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "results")
RESULTS = sorted((ROOT / "docs/results").glob("*.md"))
LONGEST = 120
FENCE = re.compile(r"^(```|~~~)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
MADE = (
    "my.yaml",
    "feature_store.yaml",
    "bentofile.yaml",
    "training/policies/reward_weighted.py",
)  # by a reader or a run
ROOMS = ("dags", "dbt_project", "feature_repo", "serving", "tests", "training")
DIARY = re.compile(
    r"an hour earlier|an hour before|slower processor|before this|earlier code|the code before", re.I
)
HASH = re.compile(
    r"\b(?:on|of|at|commit|sources of)\s+`?(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b"
)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines outside of code and tables."""
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line):
            inside = not inside
        elif not inside and not line.startswith(("    ", "|")):
            yield number, line


def named(pages: list[Path], pattern: str) -> Iterator[tuple[str, str]]:
    """What stands between backticks and fits as a whole, and where."""
    for path in pages:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for code in CODE.findall(line):
                if re.fullmatch(pattern, code):
                    yield code, f"{path.relative_to(ROOT)}:{number}: {code}"


def anchors(path: Path) -> set[str]:
    return {
        slugify(line.lstrip("# ").replace("`", ""), "-") for _, line in prose(path) if line.startswith("#")
    }


@pytest.mark.parametrize("path", OUTER, ids=lambda path: path.name)
def test_links_at_the_root_lead_somewhere(path: Path) -> None:
    dead = []
    for number, line in prose(path):
        for link in LINK.findall(line):
            page, _, anchor = link.partition("#")
            target = (path.parent / page) if page else path
            if page.startswith("https://"):
                continue
            if not target.exists() or (anchor and anchor not in anchors(target)):
                dead.append(f"{path.name}:{number}: {link}")
    assert dead == []


@pytest.mark.parametrize(
    "path", [*OUTER, *WITHIN, *RESULTS], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_lines_end_at_120_characters(path: Path) -> None:
    long = [number for number, line in prose(path) if len(LINK.sub("]", line)) > LONGEST]
    assert long == []


@pytest.mark.parametrize("path", [*OUTER, *WITHIN], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_page_is_a_diary(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [found[0] for found in (*HASH.finditer(text), *DIARY.finditer(text))] == []


def test_results_say_how_they_are_made() -> None:
    silent = [
        path.name for path in RESULTS if not re.search(r"\d{4}-\d\d-\d\d", path.read_text(encoding="utf-8"))
    ]
    assert silent == ["index.md"]


def test_files_and_modules_that_are_named_exist() -> None:
    pages = [*OUTER, *WITHIN, *RESULTS]
    names = {path.name for room in ROOMS for path in (ROOT / room).rglob("*.*")}
    wrong = [
        where
        for file, where in named(pages, r"[\w./-]+\.(py|sql|yml|yaml|c|toml)")
        if not (ROOT / file).exists()
        and not (file.split("/")[0] not in ROOMS and Path(file).name in names)
        and file not in MADE
    ]
    wrong += [
        where
        for folder, where in named(pages, rf"({'|'.join(ROOMS)})(/[\w-]+)+/?")
        if not (ROOT / folder).is_dir()
    ]
    wrong += [
        where
        for dotted, where in named(pages, rf"({'|'.join(ROOMS)})(\.\w+)+")
        # `serving` is a room and a section, and `dbt_project.yml` is a file
        if not (resolves(dotted) or is_setting(dotted) or dotted.endswith(".yml"))
    ]
    for path in pages:
        for module in re.findall(r"python -m ((?:tests|training|serving|dags)[\w.]+)", path.read_text()):
            if not resolves(module):
                wrong.append(f"{path.relative_to(ROOT)}: {module}")
    assert wrong == []


def resolves(dotted: str) -> bool:
    """A module, or a name that its module's source holds."""
    parts = dotted.rstrip(".").split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if source.is_file() or (path.is_dir() and count == len(parts)):
            return count == len(parts) or bool(
                re.search(rf"\b{parts[count]}\b", source.read_text(encoding="utf-8"))
            )
    return False


def test_settings_that_are_named_exist() -> None:
    sections = "|".join(name for name, field in Settings.model_fields.items() if model(field.annotation))
    wrong = [
        where
        for setting, where in named([*OUTER, *WITHIN], rf"({sections})(\.[a-z_]\w*)+")
        if not is_setting(setting) and not resolves(setting)
    ]
    assert wrong == []


def is_setting(dotted: str) -> bool:
    known: type[BaseModel] | None = Settings
    for part in dotted.split("."):
        if known is None or part not in known.model_fields:
            return False
        known = model(known.model_fields[part].annotation)
    return True


def model(annotation: object) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def test_the_logs_contract_is_in_the_docs() -> None:
    """Every column of the three tables but those that settings name."""
    text = (ROOT / "docs/own-logs.md").read_text(encoding="utf-8")
    settings = Settings(state={"profile": ()})
    ours = {f"p_{name}" for name in settings.head_names} | {signal.column for signal in settings.signals}
    for columns in (impression_columns(settings), user_columns(settings), decision_columns()):
        assert [c.name for c in columns if c.name not in ours and f"`{c.name}`" not in text] == []


def test_commands_that_are_named_exist() -> None:
    commands = get_command(app).commands
    text = "\n".join(path.read_text(encoding="utf-8") for path in (*OUTER, *WITHIN))
    assert set(re.findall(r"(?:`|^ {4})mtf ([a-z]+)\b", text, re.MULTILINE)) <= commands.keys()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^ {4})make ([a-z-]+)\b", text, re.MULTILINE)) <= targets
