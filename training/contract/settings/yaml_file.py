"""The settings file as YAML: nodes, which know their lines, and values. What is no YAML is told in a line."""

from pathlib import Path
from typing import Any

import yaml

from training.contract.errors import SettingsError
from training.contract.settings.lines import refuse_repeated

# PyYAML's words of what people do, and what is to be done; of others its words are enough
_ADVICE = {
    "found character '\\t'": "indent by spaces, a tab is none",
    "found another document": "settings are one document, without a second ---",
    "could not determine a constructor": "write the value without a !tag",
    "expected ',' or": "close the bracket",
    "found unhashable key": "a setting's name is a word",
}


class _Loader(yaml.SafeLoader):
    """A value that its type cannot hold (5000 digits, a 13th month) is refused with its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{_cut(str(node.value))} is no {kind} that can be read: put text in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def parse(path: Path, content: bytes) -> tuple[yaml.Node | None, Any]:
    """The document's node, None where it is empty, and its value.

    Raises :class:`SettingsError` of one line, with the file and where it is known the line, for what is not
    UTF-8, no YAML, or sets one name twice.
    """
    text = _decoded(path, content)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        refuse_repeated(node, path)  # before values are made, when << puts other mappings' keys in
        return node, loader.construct_document(node)
    except RecursionError:
        raise SettingsError(
            f"{path}: brackets or aliases lie in one another too deeply: settings are sections of values"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise SettingsError(
            f"{path}:{line}: a character that no text has ({ord(text[error.position]):#04x}): take it out, "
            "and save the file as UTF-8"
        ) from None
    except yaml.MarkedYAMLError as error:
        raise SettingsError(_told(path, error)) from None


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise SettingsError(f"{path}:{line}: not UTF-8 (byte {byte:#04x}): save the file as UTF-8") from None


def _told(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
    problem = (error.problem or "it cannot be read").removeprefix("but ")
    told = f"{place}: not YAML: {problem}"
    if error.context and error.context_mark is not None:
        told += f", {error.context} that begins in line {error.context_mark.line + 1}"
    advice = next((todo for words, todo in _ADVICE.items() if problem.startswith(words)), "")
    return f"{told}: {advice}" if advice else told


def _cut(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"
