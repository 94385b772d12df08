"""How is a binary body of ``/rank`` read and written?

It is a `safetensors <https://github.com/huggingface/safetensors>`_ file of

- ``request``, U8 [m]: a JSON object with every field of the JSON body but ``candidates``;
- ``item_id``, I64 [n], or U64 [n] where ``ids.items`` is ``uint64``; text ids (``string``) are a list
  ``item_id`` in ``request``;
- ``scores.<head>``, F32 or F64 [n], one for each head that is sent.

It is the format that policies have: no code in it, nothing compressed, every offset checked by the
library, and ten lines to write in any language. Reading 500 × 12 scores takes a quarter of JSON's time.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import orjson
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from serving.http.checks import Checks, refuse_repeated
from serving.http.requests import RankRequest, RequestError
from serving.http.schema import LONGEST_REASON, Bodies, decode
from training.contract.settings import Settings

MAXIMUM_HEADER = 64 * 1024  # bytes that name the tensors
_SCORE_TYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


class BinaryBodies:
    """Reads them against one set of settings. Every fault is a :class:`RequestError`."""

    def __init__(self, settings: Settings, bodies: Bodies, checks: Checks) -> None:
        self._largest = settings.serving.max_candidates
        self._checks, self._names = checks, checks.names
        self._fields = msgspec.json.Decoder(bodies.rank_fields)

    def rank(self, body: bytes) -> RankRequest:
        tensors = _tensors(body)
        values = decode(self._fields, _tensor(tensors, "request", ("U8",))[1])
        items = self._items(tensors, values)
        count = len(items)
        if not 1 <= count <= self._largest:
            raise RequestError(
                f"item_id: {count} candidates, expected 1 to {self._largest} (serving.max_candidates)"
            )
        refuse_repeated(items.tolist())
        scores = np.zeros((len(self._names), count))
        given = []
        for row, name in enumerate(self._names):
            if f"scores.{name}" not in tensors:
                continue
            kind, data = _tensor(tensors, f"scores.{name}", tuple(_SCORE_TYPES))
            column = np.frombuffer(data, _SCORE_TYPES[kind])
            if len(column) != count:
                raise RequestError(
                    f"scores.{name}: {len(column)} values for {count} candidates, expected one a candidate"
                )
            scores[row] = column
            given.append(name)
        if tensors:
            raise RequestError(
                f"unknown tensor {next(iter(tensors))[:80]!r}; expected request, item_id and scores.<head> "
                f"for {', '.join(self._names)}"
            )
        good = self._checks.in_range(scores)
        if not good.all():
            row, place = (int(index) for index in np.argwhere(~good)[0])
            raise RequestError(
                f"scores.{self._names[row]}[{place}]: {scores[row, place]}, expected a number in "
                f"[0, {self._checks.maxima[row]:g}]"
            )
        text = self._checks.items.kind == "string"
        return self._checks.rank_request(values, items, scores, tuple(given), text)

    def _items(self, tensors: dict[str, dict[str, Any]], values: Any) -> np.ndarray:
        """int64[n], or text as object[n]."""
        ids = self._checks.items
        if ids.kind == "string":
            return ids.many("item_id", values.item_id)
        if ids.kind == "uint64":
            unsigned = np.frombuffer(_tensor(tensors, "item_id", ("U64",))[1], "<u8")
            return ids.many("item_id", unsigned.tolist())
        return np.frombuffer(_tensor(tensors, "item_id", ("I64",))[1], "<i8")


def encode_rank_binary(
    fields: Mapping[str, Any], items: np.ndarray, scores: Mapping[str, np.ndarray]
) -> bytes:
    """A binary body of ``/rank``; scores are sent as float32 unless they are float64 already."""
    tensors: dict[str, np.ndarray] = {}
    items = np.asarray(items)
    if items.dtype.kind in "OUS":
        fields = {**fields, "item_id": [str(item) for item in items]}
    else:
        tensors["item_id"] = items.astype(np.uint64 if items.dtype == np.uint64 else np.int64, copy=False)
    tensors["request"] = np.frombuffer(orjson.dumps(fields), np.uint8)
    for name, column in scores.items():
        column = np.asarray(column)
        kind = np.float64 if column.dtype == np.float64 else np.float32
        tensors[f"scores.{name}"] = np.ascontiguousarray(column, dtype=kind)
    return save(tensors)


def _tensors(body: bytes) -> dict[str, dict[str, Any]]:
    """The tensors of a body by name: their type, shape and bytes."""
    if int.from_bytes(body[:8], "little") > MAXIMUM_HEADER:
        raise RequestError(
            f"the body is not a safetensors file with a header of at most {MAXIMUM_HEADER} bytes"
        )
    try:
        return dict(deserialize(body))
    except SafetensorError as error:
        raise RequestError(f"the body is not a safetensors file: {error}"[:LONGEST_REASON]) from error


def _tensor(tensors: dict[str, dict[str, Any]], name: str, kinds: tuple[str, ...]) -> tuple[str, bytearray]:
    """Take out one tensor of one dimension; its type and its bytes."""
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise RequestError(f"the tensor {name} is missing")
    if tensor["dtype"] not in kinds or len(tensor["shape"]) != 1:
        raise RequestError(
            f"{name}: {tensor['dtype']} of shape {tensor['shape']}, expected one dimension of "
            f"{' or '.join(kinds)}"
        )
    return tensor["dtype"], tensor["data"]
