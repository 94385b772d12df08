"""(a) The service's whole job the way BentoML's and Feast's documentation show it, default settings.

Pydantic lists in, a pydantic object out; the state from Feast's SDK; the policy; eq. (1); one line a
request appended and flushed to disk before the answer. ``bentoml serve`` on this module.
"""

import json
import os
import time

import bentoml
import numpy as np
from feast import FeatureStore
from pydantic import BaseModel

from training.contract.pointer import read_pointer
from training.contract.policy import load_policy
from training.contract.settings import load_settings


class Candidates(BaseModel):
    item_id: list[int]
    scores: dict[str, list[float]]


class Ranking(BaseModel):
    items: list[int]
    scores: list[float]


@bentoml.service
class Documented:
    def __init__(self) -> None:
        self.settings = load_settings()
        layout = self.settings.layout
        pointer = read_pointer(layout.champion)
        self.policy = load_policy(self.settings.data / pointer.policy, pointer.sha256)
        self.store = FeatureStore(repo_path=str(layout.feast))
        self.features = self.store.get_feature_service(f"state_{self.settings.state_spec.version}")
        self.log = (self.settings.data / "documented.jsonl").open("a", encoding="utf-8")

    @bentoml.api
    def rank(self, user_id: int, candidates: Candidates, k: int = 6) -> Ranking:
        rows = [{"user_id": user_id}]
        raw = self.store.get_online_features(features=self.features, entity_rows=rows).to_dict()
        raw["hour"] = [float(time.gmtime().tm_hour)]
        raw.setdefault("hist_days_since_last", [0.0])
        state = self.settings.state_spec.assemble(raw)
        action = self.policy.act(state)[0]
        fusion = self.settings.fusion
        predictions = fusion.matrix(candidates.scores, len(candidates.item_id))
        scores = fusion.score(predictions, fusion.to_weights(action))
        shown = np.argsort(-scores, kind="stable")[:k]
        items = [candidates.item_id[place] for place in shown]
        line = {
            "user_id": user_id,
            "state": state[0].tolist(),
            "action": action.tolist(),
            "items": items,
            "scores": predictions[shown].tolist(),
        }
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()
        os.fsync(self.log.fileno())
        return Ranking(items=items, scores=scores[shown].tolist())
