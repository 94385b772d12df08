"""Ships as `mtf ship` does, and is killed: ``<n> <file>`` before (n odd) or after (even) the put number n/2.

The file gets a line, the key, for each put that was done.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from serving.log import shipping
from training.contract.object_store import object_store
from training.contract.settings import load_settings

AT, DONE = int(sys.argv[1]), Path(sys.argv[2])


class Dying:
    def __init__(self, store: Any) -> None:
        self.store, self.puts = store, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def put(self, key: str, content: Any) -> None:
        self.puts += 1
        if self.puts * 2 - 1 == AT:
            os.kill(os.getpid(), signal.SIGKILL)
        self.store.put(key, content)
        with DONE.open("a") as file:
            file.write(f"{key}\n")
        if self.puts * 2 == AT:
            os.kill(os.getpid(), signal.SIGKILL)


shipping.object_store = lambda ship: Dying(object_store(ship))
shipping.Shipper(load_settings()).ship()
