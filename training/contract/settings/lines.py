"""The lines of the settings file: which one a setting stands in, and which set one twice."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from training.contract.errors import SettingsError


def locate(node: yaml.Node | None, keys: Sequence[int | str]) -> tuple[int | None, int]:
    """Line of a setting, and how many of its ``keys`` the file holds.

    Where the file does not hold the setting itself, the line is that of the closest section or list item
    around it; None where it holds none of them.
    """
    line = None
    for depth, key in enumerate(keys):
        if isinstance(node, yaml.MappingNode):
            # those that << put in come before the mapping's own, which are over them
            pair = next(((k, v) for k, v in reversed(node.value) if k.value == str(key)), None)
            if pair is None:
                return line, depth
            name, node = pair
            line = name.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            return line, depth
    return line, len(keys)


def refuse_repeated(node: yaml.Node | None, path: Path) -> None:
    """YAML takes the last of two equal keys, which hides that the first has no effect.

    Raises :class:`SettingsError` that names both lines.
    """
    nodes, looked_at = [node], set()
    while nodes:
        one = nodes.pop()
        if id(one) in looked_at:
            continue  # by an alias, which may even stand for what it is in
        looked_at.add(id(one))
        match one:
            case yaml.MappingNode(value=pairs):
                seen: dict[str, int] = {}
                for key, value in pairs:
                    if not isinstance(key, yaml.ScalarNode):
                        continue  # no name of a setting: refused when values are made
                    line = key.start_mark.line + 1
                    if key.value in seen:
                        raise SettingsError(
                            f"{path}:{line}: {key.value} is set in line {seen[key.value]} already"
                        )
                    seen[key.value] = line
                    nodes.append(value)
            case yaml.SequenceNode(value=items):
                nodes += items
