"""The lines of the settings file: which one a setting stands in, and which set one twice."""

from pathlib import Path

import yaml

from training.contract.errors import SettingsError


def refuse_repeated(node: yaml.Node | None, path: Path) -> None:
    """YAML takes the last of two equal keys, which hides that the first has no effect."""
    nodes = [node]
    while nodes:
        match nodes.pop():
            case yaml.MappingNode(value=pairs):
                seen: dict[str, int] = {}
                for key, value in pairs:
                    line = key.start_mark.line + 1
                    if key.value in seen:
                        raise SettingsError(
                            f"{path}:{line}: {key.value} is set in line {seen[key.value]} already"
                        )
                    seen[key.value] = line
                    nodes.append(value)
            case yaml.SequenceNode(value=items):
                nodes += items


def locate(node: yaml.Node | None, loc: tuple[int | str, ...]) -> tuple[list[str], int | None]:
    """Names of a fault's place, and its line in the file when the file holds it."""
    line = None
    names = [str(part) for part in loc]
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(part)]
            if not found:
                return names, line
            key, node = found[0]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return names, line
