"""The settings file: defaults, overrides, and refusals that name the line."""

import json
import os
from pathlib import Path

import pytest

from training.contract.columns import impression_columns, user_columns
from training.contract.errors import SettingsError
from training.contract.settings import Settings, load_settings, settings_path
from training.contract.settings.loader import MOVED


@pytest.fixture
def write(tmp_path: Path):
    def text(content: str) -> Path:
        path = tmp_path / "mtf.yaml"
        path.write_text(content)
        return path

    return text


@pytest.fixture(autouse=True)
def no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("MTF__"):
            monkeypatch.delenv(name)


def test_an_empty_file_gives_the_papers_numbers(write) -> None:
    settings = load_settings(write(""))
    learner, own = settings.learner, settings.learner.batchrl_mtf
    assert (learner.gamma, own.rho, learner.steps, learner.batch_size) == (0.95, 0.15, 300_000, 256)
    assert (own.generator_lr, own.perturbation_lr, learner.critic_lr) == (1e-3, 1e-4, 2e-4)
    assert (learner.target_rate, learner.target_interval, learner.window_days) == (0.05, 10, 3)
    assert (settings.evaluation.cql_weight, settings.evaluation.test_share) == (5e-4, 0.1)
    assert settings.state.history_length == 500


def test_data_is_beside_the_file_unless_it_is_absolute(write, tmp_path: Path) -> None:
    assert load_settings(write("data: lake\n")).data == tmp_path / "lake"
    assert load_settings(write("data: /somewhere/else\n")).data == Path("/somewhere/else")


def test_values_of_the_file_and_of_the_environment(write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("learner:\n  steps: 10\n  gamma: 0.5\nsession:\n  gap_minutes: 20\n")
    monkeypatch.setenv("MTF__LEARNER__STEPS", "77")
    monkeypatch.setenv("MTF__LEARNER__CRITIC_HIDDEN", "[32, 16]")
    monkeypatch.setenv("MTF__SEED", "3")
    settings = load_settings(path)
    assert (settings.learner.steps, settings.learner.gamma, settings.seed) == (77, 0.5, 3)
    assert (settings.learner.critic_hidden, settings.session.gap_minutes) == ((32, 16), 20.0)


def test_the_file_is_found_by_its_variable(write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("seed: 42\n")
    monkeypatch.setenv("MTF_SETTINGS", str(path))
    assert settings_path() == path
    assert load_settings().seed == 42


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("seed: 1\nsede: 2\n", 2, "sede: unknown setting"),
        ("seed: 1\nlearner:\n  steps: 5\n  stepz: 1\n", 4, "learner.stepz: unknown setting"),
        ("learner:\n  gamma: 1.0\n", 2, "learner.gamma: Input should be less than 1"),
        ("learner:\n  steps: many\n", 2, "learner.steps: Input should be a valid integer"),
        ("learner:\n  gamma: .nan\n", 2, "learner.gamma"),
        (
            "heads:\n- name: click\n  static: 1.0\n- name: like\n  static: 2.0\n",
            4,
            "heads.1: static 2.0 must lie within [0.0, 1.0]",
        ),
        ("heads:\n- {name: a, static: 0.1}\n- {name: a, static: 0.1}\n", 1, "named twice: a"),
        ("heads: []\n", 1, "heads"),
        ("heads:\n- {name: Click, static: 0.1}\n", 2, "heads.0.name"),
        (
            "heads:\n- {name: a, low: 2, high: 1, static: 1}\n",
            2,
            "heads.0: low 2.0 must be below high 1.0",
        ),
        ("logs:\n  source: files\n", 1, "source 'files' needs logs.folder"),
        (
            "state:\n  profile:\n  - {column: degree, kind: categorical}\n",
            3,
            "categories belong to kind 'categorical'",
        ),
        ("version: 2\n", 1, "version"),
        (
            "seed: 1\nsignals:\n- {name: a, column: is_a}\n- {name: b, column: is_a}\n",
            2,
            "signals: columns named twice: is_a",
        ),
        ("signals:\n- {name: a, column: p_click}\n", 2, "signals.0.column: p_click is the prediction"),
        (
            "state:\n  profile:\n  - {column: a}\n  - {column: a, kind: flag}\n",
            2,
            "state.profile: columns named twice: a",
        ),
        (
            "state:\n  profile:\n  - {column: a, kind: categorical, categories: [b, c, b]}\n",
            3,
            "state.profile.0.categories: named twice: b",
        ),
        ("seed: 1\ndata: ' '\n", 2, "data: is empty: name a folder"),
        ('data: "a\\0b"\n', 1, "data: holds a NUL: take it out"),
        ("data: ~nobody-of-that-name/x\n", 1, "~nobody-of-that-name/x: no such user's home"),
        ("data: mtf.yaml\n", 1, "mtf.yaml is a file: name a folder"),
        ('logs:\n  source: files\n  folder: ""\n', 3, "logs.folder: is empty: name a folder"),
        (f"logs:\n  folder: {__file__}\n", 2, "test_loader.py is a file: name a folder"),
        ("logs:\n  max_late_days: 100000\n", 2, "logs.max_late_days: Input should be less than or equal"),
        ("seed: 1\n5: 2\n", 2, "5: unknown setting"),
        ("learner:\n  return_regression:\n    leanings: [2, 1, 2.0]\n", 3, "2 is there twice"),
        ("learner:\n  return_regression:\n    leanings: [0]\n", 3, "greater than 0"),
    ],
)
def test_a_fault_is_named_by_line_and_setting(write, text: str, line: int, message: str) -> None:
    path = write(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    assert f"{path}:{line}: " in str(raised.value)
    assert message in str(raised.value)


def test_a_place_below_ones_home_is_what_a_shell_takes_it_for(write, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings(write("data: ~/loop\nlogs: {source: files, folder: ~/logs}\n"))
    assert (settings.data, settings.logs.folder) == (tmp_path / "loop", tmp_path / "logs")


@pytest.mark.parametrize("column", [c.name for c in impression_columns(Settings())] + ["dt"])
def test_a_signals_column_is_no_other_of_the_log(write, column: str) -> None:
    ours = column in {signal.column for signal in Settings().signals}
    path = write(f"seed: 1\nsignals:\n- {{name: click, column: {column}}}\n")
    if ours:
        assert load_settings(path).signals[0].column == column
        return
    with pytest.raises(SettingsError, match=rf"mtf.yaml:[23]: signals.0.column: {column} is "):
        load_settings(path)


@pytest.mark.parametrize("column", [*(c.name for c in user_columns(Settings(state={"profile": ()}))), "dt"])
def test_a_profiles_column_is_no_other_of_the_users(write, column: str) -> None:
    with pytest.raises(SettingsError, match=rf"mtf.yaml:3: state.profile.0.column: {column} is "):
        load_settings(write(f"state:\n  profile:\n  - {{column: {column}}}\n"))


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        (
            "learner:\n\tsteps: 5\n",
            ":2",
            "that cannot start any token: indent by spaces",
        ),
        ("seed: 1\n---\nseed: 2\n", ":2", "found another document, .*: settings are one document"),
        ("seed: 1\nlearner: {steps: 5\n", ":3", "a flow mapping that begins in line 2: close the bracket"),
        (
            "seed: 1\nx: !!python/name:os.system\n",
            ":2",
            "could not determine a constructor .* without a !tag",
        ),
        ("seed: 1\n\0", ":2", "a character that no text has \\(0x00\\): take it out"),
        ("? [a]\n: 1\n", ":1", "a setting's name is a word"),
        ("a: *b\n", ":1", "found undefined alias 'b'"),
        ("seed: 1\nx: 2026-13-45\n", ":2", "2026-13-45 is no timestamp that can be read: put text in quotes"),
        (f"seed: {'9' * 5000}\n", ":1", "99999… is no int that can be read"),
        ("[" * 3000, "", "brackets or aliases lie in one another too deeply"),
        ("a: &a [*a]\n", ":1", "a: unknown setting"),
        ("learner: &a {learner: *a}\n", ":1", "learner.learner: unknown setting"),
        ('"a\\nb": 1\n', ":1", r"a\\nb: unknown setting"),
        ("seed: 1\n# é\n".encode("latin-1"), ":2", "not UTF-8 \\(byte 0xe9\\): save the file as UTF-8"),
        ("seed: 1\n".encode("utf-16"), ":1", "not UTF-8 .*: save the file as UTF-8"),
    ],
)
def test_what_is_no_yaml_is_told_in_one_line(tmp_path: Path, content: str | bytes, place: str, message: str):
    path = tmp_path / "mtf.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=message) as raised:
        load_settings(path)
    told = str(raised.value)
    assert told.startswith(f"{path}{place}: ") and "\n" not in told and len(told) < 400


def test_an_alias_that_ends_may_stand_for_what_it_names(write) -> None:
    text = "heads:\n- &a {name: a, static: 0.1}\n- {<<: *a, name: b}\n- {<<: *a, name: c, static: 5}\n"
    settings = load_settings(write(text.replace("static: 5", "static: 0.5")))
    assert [(head.name, head.static) for head in settings.heads] == [("a", 0.1), ("b", 0.1), ("c", 0.5)]
    with pytest.raises(SettingsError, match=r"mtf.yaml:4: heads.2: static 5.0"):
        load_settings(write(text))


def test_every_fault_is_listed(write) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(write("sede: 1\nlearner:\n  steps: 0\n"))
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            "seed: 1\nserving:\n  shares: {random: 0.3}\n",
            3,
            "serving.shares: random 0.3, noise 0.02 and box 0 explore on 0.32 of the users, more than "
            "serving.max_exploration, 0.1",
        ),
        (
            "serving:\n  shares:\n    static: 0.9\n    random: 0.3\n  max_exploration: 0.5\n",
            2,
            "serving.shares: ",
        ),
        (
            "serving:\n  port: 3000\n  no_exploration_for: [vip]\n",
            3,
            "serving.no_exploration_for: 'vip' is no",
        ),
        (
            "gate:\n  estimator: lstd_q\nevaluation:\n  estimators: [fqe]\n",
            2,
            "gate.estimator: 'lstd_q' is not among evaluation.estimators",
        ),
        (
            "serving:\n  ship:\n    to: bucket\n",
            3,
            "serving.ship.to: 'bucket' is neither s3://bucket/prefix nor",
        ),
        (
            "serving:\n  ship: {endpoint: 'http://u:p@h'}\n",
            2,
            "serving.ship.endpoint: is no address of a server",
        ),
        ("serving:\n  log_folder: log\n", 2, "serving.log_folder: 'log' is no absolute path"),
        ("serving:\n  host: localhost\n", 2, "serving.host: 'localhost' is no IP address"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_named_with_their_line(
    write, text: str, line: int, message: str
) -> None:
    path = write(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    assert str(raised.value).startswith(f"{path}:{line}: {message}")
    assert "Value error" not in str(raised.value)


def test_a_variable_that_does_not_fit_the_file_is_named(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTF__SERVING__SHARES__RANDOM", "0.4")
    path = write("seed: 1\nserving:\n  shares:\n    static: 0.1\n")
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    said = f"{path}:3 with $MTF__SERVING__SHARES__RANDOM: serving.shares: random 0.4"
    assert str(raised.value).startswith(said)


def test_shares_cannot_exceed_all_users(write) -> None:
    with pytest.raises(SettingsError, match="add up to more than 1"):
        load_settings(write("serving:\n  shares: {static: 0.6, random: 0.3, noise: 0.2}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1\n", ":2: not YAML"), ("- 1\n", ":1: expected a mapping"), ("just text\n", "expected a mapping")],
)
def test_what_is_no_mapping_is_refused(write, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(write(text))


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*none.yaml.*mtf init.*\$MTF_SETTINGS"):
        load_settings(tmp_path / "none.yaml")


def test_the_environment_is_refused_as_the_file_is(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTF__LERNER__STEPS", "5")
    with pytest.raises(SettingsError, match=r"\$MTF__LERNER__STEPS: there is no setting 'lerner'"):
        load_settings(write(""))
    monkeypatch.delenv("MTF__LERNER__STEPS")
    monkeypatch.setenv("MTF__LEARNER__STEPZ", "5")
    with pytest.raises(SettingsError, match=r"^\$MTF__LEARNER__STEPZ: learner.stepz: unknown setting$"):
        load_settings(write(""))


def test_a_setting_given_twice_is_refused_with_both_lines(write) -> None:
    with pytest.raises(SettingsError, match=r"mtf.yaml:4: steps is set in line 2 already"):
        load_settings(write("learner:\n  steps: 10\n  gamma: 0.5\n  steps: 20\n"))


@pytest.mark.parametrize(
    ("file", "variable", "value", "place"),
    [
        ("", "MTF__LEARNER__STEPS", "0", "$MTF__LEARNER__STEPS"),
        ("learner:\n  steps: 5\n", "MTF__LEARNER__STEPS", "0", "$MTF__LEARNER__STEPS"),
        ("learner:\n  gamma: 0.5\n", "MTF__LEARNER", '{"steps": 0}', "$MTF__LEARNER"),
        ("learner:\n  gamma: 0.5\n  steps: 0\n", "MTF__LEARNER", '{"batch_size": 1}', "mtf.yaml:3"),
        ("learner:\n  steps: 0\n", "MTF__LEARNER__GAMMA", "0.5", "mtf.yaml:2"),
    ],
)
def test_a_fault_of_the_environment_is_named_by_its_variable(
    write, monkeypatch: pytest.MonkeyPatch, file: str, variable: str, value: str, place: str
) -> None:
    """A variable is over the file's line; a section's variable leaves what only the file sets."""
    path = write(file)
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    expected = str(path.parent / place) if place.startswith("mtf.yaml") else place
    assert str(raised.value).startswith(f"{expected}: learner.steps: Input should be greater than")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MTF__LEARNER", '{"steps": 0}', "$MTF__LEARNER: learner.steps: Input should be greater"),
        ("MTF__LEARNER__STEP", "4", "$MTF__LEARNER__STEP: learner.step: unknown setting"),
        (
            "MTF__HEADS__0__NAME",
            "Click",
            "$MTF__HEADS__0__NAME: heads has no entries of its own: set $MTF__HEADS",
        ),
        ("MTF__LEARNER__STEPS__X", "3", "learner.steps has no entries of its own: set $MTF__LEARNER__STEPS"),
        ("MTF__LEARNER", '{"steps": ', "$MTF__LEARNER: not JSON: '{\"steps\": '"),
        ("MTF__LEARNER__ALGORITHMS", "constant", "$MTF__LEARNER__ALGORITHMS: not JSON: 'constant'"),
        ("MTF__SERVING__SHARES__STATIC", "0.99", "mtf.yaml with $MTF__SERVING__SHARES__STATIC: "),
    ],
)
def test_the_environment_is_blamed_for_what_it_says(
    write, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """Also where the file has a sound value of its own."""
    path = write("heads:\n- {name: click, static: 1.0}\nlearner:\n  steps: 5\n  gamma: 0.5\n")
    monkeypatch.setenv("MTF__SEED", "3")  # sound, and to be blamed for nothing
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    assert said in str(raised.value) and "SEED:" not in str(raised.value)


def test_a_variable_takes_the_place_of_a_list_of_the_file(write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("heads:\n- {name: click, static: 1.0}\n")
    monkeypatch.setenv("MTF__HEADS", json.dumps([{"name": "Click", "static": 1.0}]))
    with pytest.raises(SettingsError, match=r"^\$MTF__HEADS: heads.0.name: "):
        load_settings(path)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_moved_setting_is_refused_with_its_line_and_its_new_place(
    write, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    *sections, name = old.split(".")
    text = "seed: 1\n" + "".join(f"{section}:\n  " for section in sections) + f"{name}: 1\n"
    path = write(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    assert str(raised.value) == f"{path}:{len(text.splitlines())}: {old} is now {new}"
    variable = "MTF__" + old.upper().replace(".", "__")
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SettingsError) as raised:
        load_settings(write("learner:\n  steps: 5\n"))
    assert str(raised.value) == f"${variable}: {old} is now {new}"


def test_a_setting_that_is_no_more_says_what_is_in_its_place(write) -> None:
    with pytest.raises(SettingsError, match=r"mtf.yaml:2: there is no gate.compare: .* see gate.delta"):
        load_settings(write("gate:\n  compare: lower\n"))


def test_what_lies_in_a_moved_section_is_named_there(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTF__KEEPING__LAKE_DAYS", "5")
    monkeypatch.setenv("MTF__LERNER__STEPS", "5")
    with pytest.raises(SettingsError) as raised:
        load_settings(write(""))
    assert str(raised.value).splitlines() == [
        "$MTF__KEEPING__LAKE_DAYS: keeping.lake_days is now retention.lake_days",
        "$MTF__LERNER__STEPS: there is no setting 'lerner'",
    ]


def test_every_new_place_is_a_setting() -> None:
    for new in MOVED.values():
        model = Settings
        for name in new.split("."):
            model = model.model_fields[name].annotation


def test_a_canary_needs_steps_that_leave_room_for_the_other_arms() -> None:
    with pytest.raises(ValueError, match=r"serving\.canary: has no step"):
        Settings(serving={"canary": []})
    wide = {"static": 0.2, "random": 0.3, "noise": 0.3}
    with pytest.raises(ValueError, match=r"take 0\.8, .* largest step of serving\.canary, 0\.45"):
        Settings(serving={"shares": wide, "max_exploration": 0.6})
    Settings(serving={"shares": wide, "max_exploration": 0.6, "canary": []}, gate={"evidence": "offline"})
