"""Lines of settings in a YAML text."""

import pytest
import yaml

from training.contract.settings.lines import locate

TEXT = """\
seed: 1
heads:
- name: click
  static: 1.0
- {name: like, static: 0.5}
serving:

  shares: {static: 0.2,
           random: 0.1}
"""


@pytest.mark.parametrize(
    ("keys", "line", "held"),
    [
        (("seed",), 1, 1),
        (("seed", "low"), 1, 1),
        (("heads", 0, "static"), 4, 3),
        (("heads", 1, "name"), 5, 3),
        (("heads", 1, "beta"), 5, 2),
        (("heads", 2), 2, 1),
        (("serving", "shares", "random"), 9, 3),
        (("serving", "port"), 6, 1),
        (("learner", "steps"), None, 0),
        ((), None, 0),
    ],
)
def test_a_setting_has_its_line_or_that_of_what_is_around_it(keys, line: int | None, held: int) -> None:
    assert locate(yaml.compose(TEXT, Loader=yaml.SafeLoader), keys) == (line, held)


def test_an_empty_file_holds_no_line() -> None:
    assert locate(None, ("seed",)) == (None, 0)
