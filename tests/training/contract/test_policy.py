"""Policy files: what is saved is loaded, and what is not a policy is refused with its reason."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from training.contract import policy as policy_module
from training.contract.errors import PolicyError
from training.contract.policy import (
    METADATA_KEY,
    Policy,
    PolicyHeader,
    constant_policy,
    load_policy,
    make_actor,
    mlp,
    save_policy,
)
from training.contract.settings import Settings

SETTINGS = Settings()
SPEC, FUSION = SETTINGS.state_spec, SETTINGS.fusion
D, K, Z, N = SPEC.width, len(FUSION.heads), 4, 6


def header(kind: str = "batchrl_mtf", **changes) -> PolicyHeader:
    values = {"options": {"rho": 0.15}, "lineage": {"seed": 7, "days": ["2026-01-05"]}} | changes
    return PolicyHeader(kind, "v1", SPEC, FUSION, **values)


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {
        "state_mean": rng.normal(size=D),
        "state_scale": rng.uniform(0.5, 2.0, D),
        "latents": rng.normal(size=(N, Z)),
    }
    for name, inputs, outputs in (("decoder", D + Z, K), ("perturbation", D + K, K), ("critic", D + K, 1)):
        for layer, (rows, columns) in enumerate(((8, inputs), (outputs, 8))):
            arrays[f"{name}.{layer}.weight"] = rng.normal(size=(rows, columns)) * 0.3
            arrays[f"{name}.{layer}.bias"] = rng.normal(size=rows) * 0.3
    return {name: value.astype(np.float32) for name, value in arrays.items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "policy.safetensors"
    save_policy(path, header(), tensors())
    return path


def rewrite(path: Path, arrays: dict[str, np.ndarray], **changes) -> None:
    """A file with the header's JSON changed."""
    raw = json.loads(header().to_json()) | changes
    save_file(arrays, str(path), metadata={METADATA_KEY: json.dumps(raw)})


def test_a_saved_policy_is_loaded_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    digest = save_policy(path, header(), tensors())
    loaded = load_policy(path, digest)
    assert (loaded.sha256, loaded.version, loaded.header) == (digest, "v1", header())
    states = np.random.default_rng(1).normal(size=(5, D)).astype(np.float32)
    actions = loaded.act(states)
    assert actions.shape == (5, K) and actions.dtype == np.float32 and (np.abs(actions) <= 1).all()
    np.testing.assert_array_equal(actions, load_policy(path).act(states))
    singly = np.concatenate([loaded.act(state[None]) for state in states])
    np.testing.assert_allclose(actions, singly, atol=1e-6)


def test_equal_policies_are_equal_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    backwards = dict(reversed(tensors().items()))
    assert save_policy(one, header(), tensors()) == save_policy(two, header(), backwards)
    assert one.read_bytes() == two.read_bytes()
    assert save_policy(two, header(), tensors(1)) != load_policy(one).sha256


def test_the_action_is_the_argmax_of_the_papers_equation_4(saved: Path) -> None:
    t = tensors()
    state = np.random.default_rng(2).normal(size=D).astype(np.float32)
    s = (state - t["state_mean"]) / t["state_scale"]
    best, best_q = None, -np.inf
    for z in t["latents"]:
        a = np.tanh(mlp(np.concatenate([s, z])[None], t, "decoder"))
        sa = np.concatenate([s[None], a], axis=1)
        a = np.clip(a + 0.15 * np.tanh(mlp(sa, t, "perturbation")), -1, 1)
        q = mlp(np.concatenate([s[None], a], axis=1), t, "critic").item()
        if q > best_q:
            best, best_q = a[0], q
    np.testing.assert_allclose(load_policy(saved).act(state[None])[0], best, atol=1e-6)


def test_an_ensemble_acts_by_the_mean_of_its_members(saved: Path, tmp_path: Path) -> None:
    members = [tensors(seed) for seed in range(3)]
    shared = {name: members[0][name] for name in ("state_mean", "state_scale")}
    own = {
        f"{place}.{name}": tensor
        for place, member in enumerate(members)
        for name, tensor in member.items()
        if name not in shared
    }
    options, path = {"rho": 0.15, "members": 3}, tmp_path / "ensemble.safetensors"
    save_policy(path, header(options=options), own | shared)
    states = np.random.default_rng(3).normal(size=(9, D)).astype(np.float32)
    alone = [make_actor("batchrl_mtf", member | shared, {"rho": 0.15})(states) for member in members]
    np.testing.assert_allclose(load_policy(path).act(states), np.mean(alone, axis=0), atol=1e-6)
    assert np.ptp(alone, axis=0).max() > 0.1
    # one that is said to have more members than it has
    save_policy(path, header(options=options | {"members": 4}), own | shared)
    with pytest.raises(PolicyError, match="do not fit each other"):
        load_policy(path)


def test_a_constant_policy_is_a_file_and_lives_in_memory(tmp_path: Path) -> None:
    action = np.linspace(-1, 1, K).astype(np.float32)
    path = tmp_path / "constant.safetensors"
    save_policy(path, header("constant", options={}), {"action": action})
    in_memory = constant_policy(SPEC, FUSION, action, "static")
    states = np.zeros((3, D), dtype=np.float32)
    for one in (load_policy(path), in_memory):
        np.testing.assert_array_equal(one.act(states), np.tile(action, (3, 1)))


def test_a_state_of_another_width_is_refused(saved: Path) -> None:
    loaded = load_policy(saved)
    for states in (np.zeros((1, D + 1)), np.zeros(D)):
        with pytest.raises(PolicyError, match=rf"takes states of width {D} \({SPEC.version}\), got shape"):
            loaded.act(states)


def test_an_answer_that_is_not_a_number_is_refused() -> None:
    broken = Policy(header(), "", lambda states: np.full((len(states), K), np.nan))
    with pytest.raises(PolicyError, match="not a number"):
        broken.act(np.zeros((1, D)))


def test_files_that_are_no_policy_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved.read_bytes()
    with pytest.raises(PolicyError, match="no policy file at"):
        load_policy(saved.with_name("none"))
    with pytest.raises(PolicyError, match=r"has SHA-256 .*, expected 00"):
        load_policy(saved, "00")
    for cut in (0, 4, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:cut])
        with pytest.raises(PolicyError, match="not a readable safetensors file"):
            load_policy(saved)
    saved.write_bytes(b"\x80\x04pickle" * 100)
    with pytest.raises(PolicyError, match="not a readable safetensors file"):
        load_policy(saved)
    save_file({"action": np.zeros(K, np.float32)}, str(saved))
    with pytest.raises(PolicyError, match="has no mtf_policy metadata"):
        load_policy(saved)
    saved.write_bytes(content)
    monkeypatch.setattr(policy_module, "MAXIMUM_BYTES", 100)
    with pytest.raises(PolicyError, match="larger than 100 bytes"):
        load_policy(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has policy format 2, this code reads 1"),
        ({"kind": "oracle"}, "unknown kind of policy 'oracle'"),
        ({"options": {}}, "the batchrl_mtf policy lacks 'rho'"),
        ({"state_spec": [{"name": "x"}]}, "unreadable state specification"),
        ({"heads": [{"name": "x"}]}, "unreadable policy header"),
        ({"heads": json.loads(header().to_json())["heads"][:-1]}, f"{K} entries for {K - 1} heads"),
        ({"state_spec": json.loads(SPEC.to_json())[1:]}, "the weights do not fit each other"),
    ],
)
def test_headers_that_do_not_fit_are_refused(saved: Path, changes: dict, message: str) -> None:
    rewrite(saved, tensors(), **changes)
    with pytest.raises(PolicyError, match=message):
        load_policy(saved)


def test_weights_that_do_not_fit_are_refused(saved: Path) -> None:
    arrays = tensors()
    arrays["critic.0.weight"][0, 0] = np.inf
    rewrite(saved, arrays)
    with pytest.raises(PolicyError, match=r"tensor critic.0.weight holds a value that is not a number"):
        load_policy(saved)
    without = {name: value for name, value in tensors().items() if not name.startswith("critic")}
    rewrite(saved, without)
    with pytest.raises(PolicyError, match="no network 'critic'"):
        load_policy(saved)
    without = {name: value for name, value in tensors().items() if name != "latents"}
    rewrite(saved, without)
    with pytest.raises(PolicyError, match="do not fit each other"):
        load_policy(saved)
