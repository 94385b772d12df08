"""How is an answer of ``/rank`` written, and how read again?

As JSON, or as a safetensors file of ``items`` I64 [k], ``scores`` F64 [k], and ``answer`` U8 with the other
fields as a JSON object.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from serving.http.requests import JSON


def encode_answer(answer: Mapping[str, Any], media_type: str = JSON) -> bytes:
    """``items`` and ``scores`` of the answer are numpy arrays."""
    if media_type == JSON:
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    columns = {name: np.ascontiguousarray(answer[name]) for name in ("items", "scores")}
    rest = {name: value for name, value in answer.items() if name not in columns}
    return save(columns | {"answer": np.frombuffer(orjson.dumps(rest), np.uint8)})


def decode_answer_binary(body: bytes) -> dict[str, Any]:
    """What :func:`encode_answer` wrote, as its JSON form would be read. Raises ``ValueError``."""
    try:
        tensors = {name: view["data"] for name, view in deserialize(body)}
        answer: dict[str, Any] = orjson.loads(tensors["answer"])
        return answer | {
            "items": np.frombuffer(tensors["items"], "<i8").tolist(),
            "scores": np.frombuffer(tensors["scores"], "<f8").tolist(),
        }
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"not a binary answer: {error}") from error
