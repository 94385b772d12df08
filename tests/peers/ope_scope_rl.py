"""Run by the peer's Python: scope-rl's estimates of what ``test_importance_peer.py`` left in an npz file."""

import json
import sys

import numpy as np
from scope_rl.ope.continuous import SelfNormalizedDR, SelfNormalizedPDIS


def main(path: str) -> None:
    with np.load(path, allow_pickle=False) as file:
        log = {name: file[name] for name in file.files}
    common = {
        "step_per_trajectory": int(log["step_per_trajectory"]),
        "action": log["action"],
        "reward": log["reward"],
        "pscore": log["pscore"],
        "evaluation_policy_action": log["evaluation_policy_action"],
        "gamma": float(log["gamma"]),
        "kernel": "gaussian",
        "bandwidth": float(log["bandwidth"]),
        "action_scaler": None,
    }
    robust = SelfNormalizedDR().estimate_policy_value(
        **common, state_action_value_prediction=log["state_action_value_prediction"]
    )
    print(json.dumps({"pdis": SelfNormalizedPDIS().estimate_policy_value(**common), "dr": robust}))


if __name__ == "__main__":
    main(sys.argv[1])
