"""The daily retrain: repeatable, resumable, and its policy file is what serving can load."""

import json
from datetime import date, timedelta
from typing import get_args

import numpy as np
import pytest
import torch

from training.contract.errors import DataError, MtfError
from training.contract.files import read_json
from training.contract.pointer import ChampionPointer, write_champion
from training.contract.policy import load_policy
from training.contract.settings import LearnerSettings
from training.policies import checkpoint, retrain, train

DAY = date(2026, 1, 7)


class Killed(Exception):
    pass


def logged(toy, **sections):
    world = toy(**sections)
    world.log(40)
    return world.settings


def test_the_record_and_the_files_agree(toy):
    settings = logged(toy)
    seen = []
    record = train(settings, DAY, lambda step, steps, metrics: seen.append((step, steps, set(metrics))))
    json.dumps(record, allow_nan=False)
    folder = settings.layout.model(DAY)
    assert sorted(p.name for p in folder.iterdir()) == [
        "curves.json",
        "learner.safetensors",
        "policy.safetensors",
    ]
    policy = load_policy(settings.data / record["policy"], record["sha256"])
    assert policy.version == record["version"] == policy.header.version
    assert record["version"].startswith("2026-01-07-")
    assert policy.header.spec == settings.state_spec
    assert policy.header.fusion == settings.fusion
    assert policy.header.lineage["partitions"] == record["lineage"]["partitions"]
    assert record["steps"] == 60 and record["transitions"] == record["lineage"]["train"]["transitions"]
    assert read_json(folder / "curves.json") == record["curves"]
    assert {len(values) for values in record["curves"].values()} == {60}
    assert seen[-1] == (60, 60, set(record["curves"]) - {"step"})
    lineage = record["lineage"]
    assert set(lineage["train"]["arms"]) == {"random", "noise"}
    assert lineage["threads"] == 1 and lineage["torch"] == torch.__version__


def test_equal_inputs_give_an_equal_file_and_other_ones_do_not(toy):
    first = train(logged(toy, folder="a"), DAY)
    assert train(logged(toy, folder="b"), DAY)["sha256"] == first["sha256"]
    assert train(logged(toy, folder="c", seed=8), DAY)["version"] != first["version"]
    other = train(logged(toy, folder="d", learner={"gamma": 0.9}), DAY)
    assert other["version"] != first["version"] and other["sha256"] != first["sha256"]


def test_a_set_in_mapped_files_gives_the_same_policy(toy):
    held = train(logged(toy, folder="held"), DAY)
    mapped = train(logged(toy, folder="mapped", learner={"map_above_bytes": 0}), DAY)
    assert mapped == held


@pytest.mark.parametrize("at", [10, 33, 59])
def test_a_killed_run_ends_as_if_it_had_not_been(toy, at):
    whole = train(logged(toy, folder="whole"), DAY)
    settings = logged(toy, folder="killed")

    def kill(step, steps, metrics):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        train(settings, DAY, kill)
    assert not (settings.layout.model(DAY) / "policy.safetensors").exists()
    resumed_at = []
    record = train(settings, DAY, lambda step, *_: resumed_at.append(step))
    assert resumed_at[0] == at // 25 * 25 + 1
    assert record == whole
    assert not (settings.layout.model(DAY) / "checkpoint.safetensors").exists()


def test_curves_coarser_than_checkpoints_also_resume(toy):
    whole = train(logged(toy, folder="whole", learner={"steps": 250, "checkpoint_every": 35}), DAY)
    settings = logged(toy, folder="killed", learner={"steps": 250, "checkpoint_every": 35})
    assert whole["curves"]["step"][:3] == [2, 4, 6]

    def kill(step, steps, metrics):
        if step == 106:
            raise Killed

    with pytest.raises(Killed):
        train(settings, DAY, kill)
    assert train(settings, DAY) == whole


def test_a_stale_or_broken_checkpoint_is_not_resumed(toy):
    whole = train(logged(toy, folder="whole"), DAY)
    settings = logged(toy, folder="stale")
    path = settings.layout.model(DAY) / "checkpoint.safetensors"
    state = checkpoint.read(settings.data.parent / "whole/models/dt=2026-01-07/learner.safetensors")
    checkpoint.save(path, state[0], state[1] | {"fingerprint": "of other data"})
    assert train(settings, DAY) == whole
    learner = settings.layout.model(DAY) / "learner.safetensors"
    learner.write_bytes(learner.read_bytes()[:5_000])
    path.write_bytes(b"no checkpoint")
    assert train(settings, DAY) == whole


def test_a_finished_run_is_exported_again_without_training(toy):
    settings = logged(toy)
    first, steps = train(settings, DAY), []
    assert train(settings, DAY, lambda step, *_: steps.append(step)) == first
    assert steps == []


def test_divergence_is_an_error_and_leaves_no_policy(toy):
    settings = logged(toy, learner={"critic_lr": 1e30})
    with pytest.raises(MtfError, match="diverged"):
        train(settings, DAY)
    assert not (settings.layout.model(DAY) / "policy.safetensors").exists()


def test_without_data_there_is_no_policy(toy):
    with pytest.raises(DataError):
        train(toy().settings, DAY)


def promote(settings, record, day, previous=None):
    pointer = ChampionPointer(
        record["policy"], record["sha256"], record["version"], day.isoformat(), "1", "now", previous
    )
    write_champion(settings.layout.champion, pointer)
    return pointer


def warm(world, **learner):
    return world.settings.model_copy(
        update={"learner": world.settings.learner.model_copy(update={"warm_start": True, **learner})}
    )


def test_a_warm_start_goes_on_from_the_champion_of_an_earlier_day(toy):
    world = toy()
    world.days = [DAY - timedelta(days=1), DAY]
    world.log(40)
    yesterday = train(world.settings, world.days[0])
    settings = warm(world)
    pointer = promote(settings, yesterday, world.days[0])
    record = train(settings, DAY)
    assert record["lineage"]["warm_start"]["version"] == yesterday["version"]
    cold = train(toy(folder="data").settings, DAY)
    early = slice(0, 10)
    assert sum(record["curves"]["reconstruction"][early]) < sum(cold["curves"]["reconstruction"][early])
    # a rerun after the day's own promotion starts where the first run did
    promote(settings, record, DAY, previous=pointer.__dict__)
    assert train(settings, DAY) == record


def test_a_warm_start_reads_widths_that_were_saved_without_their_section(toy):
    world = toy()
    world.days = [DAY - timedelta(days=1), DAY]
    world.log(40)
    yesterday = train(world.settings, world.days[0])
    promote(world.settings, yesterday, world.days[0])
    path = world.settings.layout.model(world.days[0]) / "learner.safetensors"
    tensors, about = checkpoint.read(path)
    older = {name.removeprefix("batchrl_mtf."): value for name, value in about["networks"].items()}
    assert older != about["networks"]
    checkpoint.save(path, tensors, about | {"networks": older})
    assert train(warm(world), DAY)["lineage"]["warm_start"]["version"] == yesterday["version"]


@pytest.mark.parametrize("why", ["no champion", "does not hold the champion", "critic_hidden"])
def test_a_warm_start_that_cannot_be_says_so_and_starts_fresh(toy, why):
    world = toy()
    world.log(40)
    if why != "no champion":
        yesterday = train(world.settings, world.days[0])
        promote(world.settings, yesterday, world.days[0])
        if why == "does not hold the champion":
            (world.settings.layout.model(world.days[0]) / "learner.safetensors").unlink()
    settings = warm(world, critic_hidden=(16,)) if why == "critic_hidden" else warm(world)
    record = train(settings, DAY)
    assert record["lineage"]["warm_start"] is None
    assert any(why in warning for warning in record["warnings"])


def test_threads_and_determinism_are_put_back(toy):
    before = torch.get_num_threads()
    train(logged(toy), DAY)
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_algorithm_of_the_settings_is_registered():
    assert set(retrain.ALGORITHMS) == set(get_args(LearnerSettings.model_fields["algorithm"].annotation))


def test_it_learns_the_long_term_where_the_greedy_action_is_worse(toy):
    width = (48, 48)
    world = toy(
        learner={
            "steps": 1_200,
            "target_rate": 0.2,
            "critic_hidden": width,
            "critic_lr": 2e-3,
            "batchrl_mtf": {
                "serving_candidates": 30,
                "latent_clip": 1.5,  # the log is uniform: actions far from its mean are in the data
                "generator_hidden": width,
                "perturbation_hidden": width,
                "perturbation_lr": 2e-3,
            },
        }
    )
    world.log(500)
    record = train(world.settings, DAY)
    policy = load_policy(world.settings.data / record["policy"])

    def behaviour(states, rng):
        return rng.uniform(-1, 1, (len(states), 2))

    def greedy(states, rng):
        return np.stack([np.ones(len(states)), states[:, 1]], axis=1)

    def best(states, rng):
        return np.stack([-np.ones(len(states)), states[:, 1]], axis=1)

    value = {
        name: world.value(act, 0.95, sessions=400)
        for name, act in {
            "policy": lambda states, rng: policy.act(states),
            "behaviour": behaviour,
            "greedy": greedy,
            "best": best,
        }.items()
    }
    assert value["greedy"] < value["behaviour"] < value["policy"] < value["best"]
    recovered = (value["policy"] - value["behaviour"]) / (value["best"] - value["behaviour"])
    assert recovered > 0.7, value
