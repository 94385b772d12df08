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
    """``scores`` of the answer is a numpy array; so is ``items``, or a list of numbers or of text."""
    if media_type == JSON:
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    columns = {"scores": np.ascontiguousarray(answer["scores"])}
    items = answer["items"]
    if isinstance(items, np.ndarray):
        columns["items"] = np.ascontiguousarray(items)
    elif items and isinstance(items[0], int):
        columns["items"] = np.array(items, dtype=np.uint64)
    rest = {name: value for name, value in answer.items() if name not in columns}
    return save(columns | {"answer": np.frombuffer(orjson.dumps(rest), np.uint8)})


def decode_answer_binary(body: bytes) -> dict[str, Any]:
    """What :func:`encode_answer` wrote, as its JSON form would be read. Raises ``ValueError``."""
    try:
        tensors = {name: view["data"] for name, view in deserialize(body)}
        types = {name: view["dtype"] for name, view in deserialize(body)}
        answer: dict[str, Any] = orjson.loads(tensors["answer"])
        if "items" in tensors:
            kind = "<u8" if types["items"] == "U64" else "<i8"
            answer["items"] = np.frombuffer(tensors["items"], kind).tolist()
        return answer | {"scores": np.frombuffer(tensors["scores"], "<f8").tolist()}
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"not a binary answer: {error}") from error
