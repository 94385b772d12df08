"""Every algorithm of the settings goes from the log through training and export to the gate's file rules."""

import shutil
from datetime import date

import numpy as np
import pytest

from tests.training.promotion.conftest import estimate
from training.contract.policy import load_policy
from training.contract.records import write_record
from training.policies import ALGORITHMS, return_regression, train
from training.promotion import gate

DAY = date(2026, 1, 7)


@pytest.fixture(scope="module")
def logged(make_toy, tmp_path_factory):
    world = make_toy(
        tmp_path_factory.mktemp("toy"),
        learner={"steps": 5, "actor_hidden": (16,), "unified_rl": {"critics": 2}},
        gate={"max_latency_ms": 1_000.0, "evidence": "offline"},  # the tests' machine may be busy
    )
    world.log(40)
    return world.settings


@pytest.mark.parametrize("algorithm", sorted({*ALGORITHMS, *return_regression.ALGORITHMS}))
def test_it_is_trained_exported_loaded_and_passes_the_rules_on_files(algorithm, logged):
    learner = logged.learner.model_copy(update={"algorithms": (algorithm,)})
    settings = logged.model_copy(update={"learner": learner})
    trained = train(settings, DAY)
    write_record(settings.layout, DAY, "train", trained)
    record = trained["pool"][algorithm]
    path = settings.data / record["policy"]
    shutil.copyfile(path, settings.layout.model(DAY) / path.name)
    names = {name: estimate(1.0) for name in ("challenger", "static")}
    write_record(settings.layout, DAY, "evaluate", {**record, "estimates": names})
    rules = {rule["rule"]: rule for rule in gate(settings, DAY)["rules"]}
    for name in ("loadable", "size", "latency", "not rolled back"):
        assert rules[name]["passed"], rules[name]["reason"]

    policy = load_policy(path, record["sha256"])
    rng = np.random.default_rng(0)
    states = rng.normal(size=(6, settings.state_spec.width)).astype(np.float32)
    actions = policy.act(states)
    assert actions.shape == (6, 2) and np.abs(actions).max() <= 1.0
    predictions = rng.random((6, 10, 2))
    scores = policy.scores(predictions, states, actions)
    assert scores.shape == (6, 10) and np.isfinite(scores).all()
    assert policy.ranks == (algorithm == "xmtf")
    if not policy.ranks:
        fusion = settings.fusion
        np.testing.assert_array_equal(scores, fusion.score(predictions, fusion.to_weights(actions)))
