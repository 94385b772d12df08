"""The keys of a window's rows, in one order."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.trajectories.export import read, refuse_null


class Keys:
    """The keys of the window's R rows, in one order whatever the files' own: (event_ts, request_id).

    Its place in that order names a row: a rerun of the transform must not change the policy. ``places``
    has, for each file, the places of its rows. The other arrays are of all R rows: ``following`` is the
    place of the next request (−1 where it is not in the window), ``current`` tells rows of this state
    specification, ``sessions`` are keys for :meth:`session_name`, ``arms`` index ``arm_names`` and
    ``versions`` ``version_names``, ``users`` are codes of the users, ``steps`` the rows' places in their
    sessions and ``requests_before`` how many requests of the same user and file come before.
    """

    def __init__(self, paths: Sequence[Path], version: str) -> None:
        self._paths = paths
        stamps = self._column("event_ts", pa.timestamp("us", "UTC"))
        keys = pa.table([stamps, self._column("request_id", pa.string())], ["ts", "id"])
        self._order = pc.sort_indices(keys, [("ts", "ascending"), ("id", "ascending")]).to_numpy()
        del stamps, keys
        place = np.empty(len(self._order), dtype=np.int64)
        place[self._order] = np.arange(len(place))
        lengths = [pq.read_metadata(path).num_rows for path in paths]
        self.places = np.split(place, np.cumsum(lengths)[:-1])
        following = np.full(len(place), -1)
        following_requests = self._column("next_request_id", pa.string(), nullable=True)
        for path, places in zip(paths, self.places, strict=True):  # a table of all requests takes gigabytes
            requests = read(path, ["request_id"])["request_id"].cast(pa.string()).combine_chunks()
            found = pc.index_in(following_requests, value_set=requests, skip_nulls=True)
            found = pc.fill_null(found, -1).to_numpy()
            following[found >= 0] = places[found[found >= 0]]
        self.following = following[self._order]
        del following_requests, requests, found

        numbers = pa.types.is_integer(pq.read_schema(paths[0]).field("user_id").type)
        users, self._users = self._categories("user_id", pa.int64() if numbers else pa.string())
        sessions, self._session_ids = self._categories("session_id", pa.string())
        self.sessions = users * len(self._session_ids) + sessions
        self.users = users.astype(np.int32)
        self.steps = self._in_order(self._column("step", pa.int32()))
        self.requests_before = self._requests_before(users)
        self.arms, self.arm_names = self._sorted_categories("arm")
        self.versions, self.version_names = self._sorted_categories("policy_version")
        specs, versions = self._categories("state_spec", pa.string())
        self.current = np.array([known == version for known in versions.to_pylist()], dtype=bool)[specs]
        self.done = self._in_order(self._column("done", pa.bool_()))
        self.truncated = self._in_order(self._column("truncated", pa.bool_()))
        del self._order
        pa.default_memory_pool().release_unused()

    def session_name(self, key: int) -> str:
        user, session = divmod(int(key), len(self._session_ids))
        return f"{self._users[user]}/{self._session_ids[session]}"

    def _requests_before(self, users: np.ndarray) -> np.ndarray:
        """int32[R]; a file holds a day."""
        found = np.empty(len(users), dtype=np.int32)
        for places in self.places:
            places = np.sort(places)
            by_user = np.argsort(users[places], kind="stable")
            ordered = users[places][by_user]
            first = np.append(True, ordered[1:] != ordered[:-1]) if len(ordered) else np.zeros(0, bool)
            begins = np.flatnonzero(first)
            lengths = np.diff(np.append(begins, len(ordered)))
            found[places[by_user]] = np.arange(len(ordered)) - np.repeat(begins, lengths)
        return found

    def _column(self, name: str, kind: pa.DataType, nullable: bool = False) -> pa.ChunkedArray:
        """One column of all files, as they lie."""
        chunks = []
        for path in self._paths:
            table = read(path, [name])
            if not nullable:
                refuse_null(path, table, name)
            chunks += table[name].cast(kind).chunks
        return pa.chunked_array(chunks, kind)

    def _in_order(self, column: pa.ChunkedArray) -> np.ndarray:
        return column.to_numpy()[self._order]

    def _sorted_categories(self, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """Codes int64[R] into the sorted names, which do not depend on the order of rows."""
        codes, found = self._categories(name, pa.string())
        names = found.to_pylist()
        ordered = sorted(names)
        return np.array([ordered.index(one) for one in names], dtype=np.int64)[codes], tuple(ordered)

    def _categories(self, name: str, kind: pa.DataType) -> tuple[np.ndarray, pa.Array]:
        """Codes int64[R], and what each stands for."""
        encoded = self._column(name, kind).dictionary_encode().combine_chunks()
        return encoded.indices.to_numpy().astype(np.int64)[self._order], encoded.dictionary
