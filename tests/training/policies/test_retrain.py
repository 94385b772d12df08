"""The daily retrain: repeatable, resumable, and its policy file is what serving can load."""

import json
from datetime import date, timedelta
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from threadpoolctl import threadpool_info, threadpool_limits

from training.contract.errors import DataError, MtfError
from training.contract.files import read_json
from training.contract.pointer import PolicyPointer, write_pointer
from training.contract.policy import load_policy
from training.contract.settings.algorithms import Algorithm
from training.policies import checkpoint, retrain, return_regression, train

DAY = date(2026, 1, 7)


class Killed(Exception):
    pass


ONE = "batchrl_mtf"


def alone(toy, **sections):
    """A world whose pool is BatchRL-MTF."""
    learner = {"algorithms": (ONE,)} | sections.pop("learner", {})
    return toy(learner=learner, **sections)


def logged(toy, **sections):
    world = alone(toy, **sections)
    world.log(40)
    return world.settings


def folder_of(settings, day=DAY, algorithm=ONE):
    return settings.layout.model(day) / algorithm


def test_the_record_and_the_files_agree(toy):
    world = toy()  # the pool that is trained by default
    world.log(40)
    settings, seen = world.settings, []
    record = train(settings, DAY, lambda *at: seen.append((*at[:3], set(at[3]))))
    json.dumps(record, allow_nan=False)
    assert tuple(record["pool"]) == settings.learner.algorithms
    assert record["transitions"] == record["lineage"]["train"]["transitions"]
    files = {name: {p.name for p in folder_of(settings, algorithm=name).iterdir()} for name in record["pool"]}
    learnt = {"curves.json", "learner.safetensors", "policy.safetensors"}
    closed = {name: {"policy.safetensors"} for name in return_regression.ALGORITHMS}
    assert files == {**closed, ONE: learnt}
    for name, one in record["pool"].items():
        policy = load_policy(settings.data / one["policy"], one["sha256"])
        assert policy.version == one["version"] == policy.header.version
        assert one["version"].startswith("2026-01-07-")
        assert policy.header.spec == settings.state_spec
        assert policy.header.fusion == settings.fusion
        assert policy.header.lineage["algorithm"] == name
        assert policy.header.lineage["partitions"] == record["lineage"]["partitions"]
    assert len({one["version"] for one in record["pool"].values()}) == len(record["pool"])
    one = record["pool"][ONE]
    assert one["steps"] == 60
    assert read_json(folder_of(settings) / "curves.json") == one["curves"]
    assert {len(values) for values in one["curves"].values()} == {60}
    assert seen[-1] == (ONE, 60, 60, set(one["curves"]) - {"step"})
    assert {name for name, *_ in seen} == set(record["pool"])
    lineage = record["lineage"]
    assert set(lineage["train"]["arms"]) == {"random", "noise"}
    assert lineage["threads"] == 1 and lineage["torch"] == torch.__version__
    assert train(settings, DAY) == record  # whoever runs it again finds the same


def test_a_policy_does_not_depend_on_what_else_is_in_the_data_folder_or_the_order_of_the_pool(toy):
    names = ("constant", ONE)
    one, other = (
        logged(toy, folder=order[0], learner={"algorithms": order}) for order in (names, names[::-1])
    )
    found, turned = train(one, DAY)["pool"], train(other, DAY)["pool"]
    assert tuple(turned) == names[::-1]
    tensors = [load_file(one.data / found[name]["policy"]) for name in names]
    again = [load_file(other.data / turned[name]["policy"]) for name in names]
    for here, there in zip(tensors, again, strict=True):
        assert set(here) == set(there)
        for name, tensor in here.items():
            np.testing.assert_array_equal(tensor, there[name])


def test_a_log_of_too_few_sessions_for_a_regression_says_so(toy):
    world = toy(learner={"algorithms": ("constant",)})
    world.log(20)
    with pytest.raises(DataError, match="40 sessions are too few"):
        train(world.settings, DAY)
    others = toy(folder="others")  # a pool with gradient learners goes on without it
    others.log(20)
    record = train(others.settings, DAY)
    assert set(record["pool"]) == {ONE}
    (warning,) = (line for line in record["warnings"] if "left out of the pool" in line)
    assert "constant and return_regression" in warning and "40 sessions are too few" in warning


def test_equal_inputs_give_an_equal_file_and_other_ones_do_not(toy):
    def only(**sections):
        return train(logged(toy, **sections), DAY)["pool"][ONE]

    first = only(folder="a")
    assert only(folder="b")["sha256"] == first["sha256"]
    assert only(folder="c", seed=8)["version"] != first["version"]
    other = only(folder="d", learner={"gamma": 0.9})
    assert other["version"] != first["version"] and other["sha256"] != first["sha256"]


def test_a_set_in_mapped_files_gives_the_same_policy(toy):
    held = train(logged(toy, folder="held"), DAY)
    mapped = train(logged(toy, folder="mapped", learner={"map_above_bytes": 0}), DAY)
    assert mapped == held


@pytest.mark.parametrize("at", [10, 33, 59])
def test_a_killed_run_ends_as_if_it_had_not_been(toy, at):
    whole = train(logged(toy, folder="whole"), DAY)
    settings = logged(toy, folder="killed")

    def kill(algorithm, step, steps, metrics):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        train(settings, DAY, kill)
    assert not (folder_of(settings) / "policy.safetensors").exists()
    resumed_at = []
    record = train(settings, DAY, lambda _, step, *__: resumed_at.append(step))
    assert resumed_at[0] == at // 25 * 25 + 1
    assert record == whole
    assert not (folder_of(settings) / "checkpoint.safetensors").exists()


def test_curves_coarser_than_checkpoints_also_resume(toy):
    whole = train(logged(toy, folder="whole", learner={"steps": 250, "checkpoint_every": 35}), DAY)
    settings = logged(toy, folder="killed", learner={"steps": 250, "checkpoint_every": 35})
    assert whole["pool"][ONE]["curves"]["step"][:3] == [2, 4, 6]

    def kill(algorithm, step, steps, metrics):
        if step == 106:
            raise Killed

    with pytest.raises(Killed):
        train(settings, DAY, kill)
    assert train(settings, DAY) == whole


def test_a_stale_or_broken_checkpoint_is_not_resumed(toy):
    whole = train(logged(toy, folder="whole"), DAY)
    settings = logged(toy, folder="stale")
    path = folder_of(settings) / "checkpoint.safetensors"
    state = checkpoint.read(settings.data.parent / f"whole/models/dt=2026-01-07/{ONE}/learner.safetensors")
    checkpoint.save(path, state[0], state[1] | {"fingerprint": "of other data"})
    assert train(settings, DAY) == whole
    learner = folder_of(settings) / "learner.safetensors"
    learner.write_bytes(learner.read_bytes()[:5_000])
    path.write_bytes(b"no checkpoint")
    assert train(settings, DAY) == whole


def test_a_finished_run_is_exported_again_without_training(toy):
    settings = logged(toy)
    first, steps = train(settings, DAY), []
    assert train(settings, DAY, lambda _, step, *__: steps.append(step)) == first
    assert steps == []


def test_divergence_is_an_error_and_leaves_no_policy(toy):
    settings = logged(toy, learner={"critic_lr": 1e30})
    with pytest.raises(MtfError, match="diverged"):
        train(settings, DAY)
    assert not (folder_of(settings) / "policy.safetensors").exists()


def test_without_data_there_is_no_policy(toy):
    with pytest.raises(DataError):
        train(toy().settings, DAY)


def promote(settings, record, day, previous=None):
    record = record["pool"][ONE]
    pointer = PolicyPointer(
        record["policy"], record["sha256"], record["version"], day.isoformat(), "1", "now", previous
    )
    write_pointer(settings.layout.champion, pointer)
    return pointer


def began_from(settings, record):
    return load_policy(settings.data / record["pool"][ONE]["policy"]).header.lineage["warm_start"]


def warm(world, **learner):
    return world.settings.model_copy(
        update={"learner": world.settings.learner.model_copy(update={"warm_start": True, **learner})}
    )


def test_a_warm_start_goes_on_from_the_champion_of_an_earlier_day(toy):
    world = alone(toy)
    world.days = [DAY - timedelta(days=1), DAY]
    world.log(40)
    yesterday = train(world.settings, world.days[0])
    settings = warm(world)
    pointer = promote(settings, yesterday, world.days[0])
    record = train(settings, DAY)
    assert began_from(settings, record)["version"] == yesterday["pool"][ONE]["version"]
    cold = train(alone(toy, folder="data").settings, DAY)
    warmed, fresh = (sum(r["pool"][ONE]["curves"]["reconstruction"][:10]) for r in (record, cold))
    assert warmed < fresh
    # a rerun after the day's own promotion starts where the first run did
    promote(settings, record, DAY, previous=pointer.__dict__)
    assert train(settings, DAY) == record


def test_a_warm_start_reads_widths_that_were_saved_without_their_section(toy):
    world = alone(toy)
    world.days = [DAY - timedelta(days=1), DAY]
    world.log(40)
    yesterday = train(world.settings, world.days[0])
    promote(world.settings, yesterday, world.days[0])
    path = folder_of(world.settings, world.days[0]) / "learner.safetensors"
    tensors, about = checkpoint.read(path)
    older = {name.removeprefix("batchrl_mtf."): value for name, value in about["networks"].items()}
    assert older != about["networks"]
    checkpoint.save(path, tensors, about | {"networks": older})
    record = train(warm(world), DAY)
    assert began_from(world.settings, record)["version"] == yesterday["pool"][ONE]["version"]


@pytest.mark.parametrize("why", ["no champion", "does not hold the champion", "critic_hidden"])
def test_a_warm_start_that_cannot_be_says_so_and_starts_fresh(toy, why):
    world = alone(toy)
    world.log(40)
    if why != "no champion":
        yesterday = train(world.settings, world.days[0])
        promote(world.settings, yesterday, world.days[0])
        if why == "does not hold the champion":
            (folder_of(world.settings, world.days[0]) / "learner.safetensors").unlink()
    settings = warm(world, critic_hidden=(16,)) if why == "critic_hidden" else warm(world)
    record = train(settings, DAY)
    assert began_from(settings, record) is None
    assert any(why in warning for warning in record["warnings"])


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_threads_and_determinism_are_put_back(toy):
    inside, before = set(), torch.get_num_threads()
    with threadpool_limits(2, user_api="blas"):
        train(logged(toy), DAY, lambda *_: inside.update(blas_threads()))
        assert {*blas_threads()} == {2}
    assert inside == {1}  # BLAS's others would wait in a loop for a core
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_algorithm_of_the_settings_is_registered():
    assert {*retrain.ALGORITHMS, *return_regression.ALGORITHMS} == set(get_args(Algorithm))
    assert not set(retrain.ALGORITHMS) & set(return_regression.ALGORITHMS)


def test_it_learns_the_long_term_where_the_greedy_action_is_worse(toy):
    width = (48, 48)
    world = alone(
        toy,
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
        },
    )
    world.log(500)
    record = train(world.settings, DAY)["pool"][ONE]
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
