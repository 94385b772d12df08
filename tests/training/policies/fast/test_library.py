"""Where the compiled step runs, what is learnt where it does not, and what is refused there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.policies.fast.compiled import compiled
from training.contract import code_sources
from training.contract.errors import SettingsError
from training.contract.settings import LearnerSettings
from training.policies import fast, lineage
from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.fast import library
from training.policies.td3 import TD3

NEEDS = {"avx512_bf16", "avx512bw", "avx512vl", "avx512_vnni"}
ROOT = Path(__file__).parents[4]
CPU = torch.device("cpu")


def test_it_is_there_where_processor_and_compiler_allow():
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line), "")
    hidden = "ONEDNN_MAX_CPU_ISA" in os.environ
    allowed = set(flags.split()) >= NEEDS and shutil.which("cc") is not None and not hidden
    assert (library.LIBRARY is not None) == allowed


def test_the_variable_of_onednn_hides_it():
    """One switch takes the instructions from oneDNN's products and from the compiled step."""
    code = """
import json, torch
from training.contract.settings import LearnerSettings
from training.policies import fast
from training.policies.fast import library
cpu = torch.device("cpu")
kind = type(fast.draws(1, cpu)).__name__
print(json.dumps([library.LIBRARY is None, fast.precision(LearnerSettings(), cpu), kind]))
"""
    for isa in ("AVX2", "avx512_core"):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa},
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        assert json.loads(ran.stdout.splitlines()[-1]) == [True, "float32", "Draws"]


@compiled
def test_auto_is_the_shortest_and_each_can_be_asked_for(random_transitions, small):
    for asked, chosen in (
        ("auto", "int8"),
        ("int8", "int8"),
        ("bfloat16", "bfloat16"),
        ("float32", "float32"),
    ):
        config = small(precision=asked)
        assert fast.precision(config, CPU) == chosen
        assert fast.arithmetic(config, CPU) == (chosen if chosen == "float32" else f"{chosen}, compiled")
        learner = BatchRLMTF(config, random_transitions(), seed=0)
        assert (learner.fast is None) == (chosen == "float32")
        assert learner.arithmetic(config) == fast.arithmetic(config, CPU)


@pytest.mark.parametrize(
    "where", [{"critic_hidden": ()}, {"generator_hidden": (4,) * 8}, {"perturbation_hidden": ()}]
)
def test_networks_that_do_not_fit_take_the_page(where, random_transitions, small):
    assert BatchRLMTF(small(precision="auto", **where), random_transitions(), seed=0).fast is None
    with pytest.raises(SettingsError, match=r"int8 needs .* networks of 1 to 7 hidden layers"):
        BatchRLMTF(small(precision="int8", **where), random_transitions(), seed=0)


def test_another_device_takes_the_page():
    cuda = torch.device("cuda")
    assert fast.precision(LearnerSettings(), cuda) == "float32"
    assert type(fast.draws(1, CPU)) is not type(fast.draws(1, cuda)) or library.LIBRARY is None
    with pytest.raises(SettingsError, match="device cpu"):
        fast.precision(LearnerSettings(batchrl_mtf={"precision": "bfloat16"}), cuda)


def test_a_learner_without_a_second_form_is_of_float32_whatever_is_asked_of_batchrl_mtf():
    assert TD3.arithmetic(LearnerSettings(algorithms=["td3"], batchrl_mtf={"precision": "int8"})) == "float32"


def test_the_code_of_a_policy_is_that_of_both_forms():
    files = {path.as_posix() for path in code_sources.reached([(Path(), "training.policies.retrain")]).files}
    own = "batchrl_mtf.py", "fast/kernels.c", "fast/step.py"
    assert files >= {f"training/policies/{name}" for name in own}
    assert "training/trajectories/split.py" in files
    assert lineage.code_sha256() == code_sources.sha256_of("training.policies.retrain")


def test_both_forms_are_tested_with_the_instructions_hidden():
    """These tests again, as on a processor without AVX-512, whatever this one has."""
    if "ONEDNN_MAX_CPU_ISA" in os.environ:
        assert library.LIBRARY is None
        return
    here = Path(__file__).parent
    tests = [here.parent / "test_batchrl_mtf.py", here.parent / "test_products.py", here]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", *map(str, tests)],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stdout
