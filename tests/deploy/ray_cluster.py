"""A Ray cluster on loopback for tests, started as an operator starts it, and killed with all its processes."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import yaml
from pydantic import PydanticDeprecatedSince20

from benchmarks.support.ports import free_port

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

ROOT = Path(__file__).parents[2]

T = TypeVar("T")

_APPLICATIONS = "/api/serve/applications/"
_PATIENCE_S = 180


class Cluster:
    """One node. Like `serve deploy`, it deploys applications over the dashboard's REST API."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Ray needs these port numbers in advance.
        gcs, dashboard, client, self.http_port = (free_port() for _ in range(4))
        token = secrets.token_hex()
        self._api = httpx.Client(
            base_url=f"http://127.0.0.1:{dashboard}", headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT / 'deploy/ray'}:{ROOT}",
            "RAY_AUTH_MODE": "token",  # if unset, files in the user's home decide
            "RAY_AUTH_TOKEN": token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # one node, all of it on loopback
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        # `ray start --block` is killed with the thread that starts it, and its children end too. Two agents end
        # a minute later, when they stop trying to report to it.
        start = ["setpriv", "--pdeathsig=KILL", str(Path(sys.executable).parent / "ray"), "start"]
        ray = [*start, "--head", "--block", "--log-color=false"]
        ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        node = ["--num-cpus=2", '--resources={"NPU": 2}', "--include-log-monitor=false"]
        # Not in /dev/shm, because containers have little of it.
        store = ["--object-store-memory=80000000", f"--plasma-directory={folder}", f"--temp-dir={folder}"]
        self._log = folder / "ray.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*ray, *ports, *node, *store],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def wait_until_started(self) -> None:
        self.wait_for(lambda: self._api.get(_APPLICATIONS).is_success)

    def deploy(self, *applications: dict[str, Any]) -> None:
        """Deploy these applications and remove all others. Does not wait for them."""
        config = {"http_options": {"host": "127.0.0.1", "port": self.http_port}, "applications": applications}
        response = self._api.put(_APPLICATIONS, json=config)
        assert response.is_success, response.text

    def details(self, application: str) -> dict[str, Any]:
        """The details that Ray reports of an application's deployment."""
        response = self._api.get(_APPLICATIONS)
        deployment: dict[str, Any] = response.json()["applications"][application]["deployments"]["SdxlTurbo"]
        return deployment

    def running(self, application: str) -> set[int]:
        """The process ids of the running replicas."""
        replicas = self.details(application)["replicas"]
        return {replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}

    def wait_for_replicas(self, application: str, number: int, *, but: Collection[int] = ()) -> set[int]:
        """Wait until `number` replicas run, none of them in `but`, and return their process ids."""

        def found() -> set[int]:
            pids = self.running(application)
            return pids if len(pids) == number and not pids.intersection(but) else set()

        return self.wait_for(found)

    def wait_for(self, ask: Callable[[], T]) -> T:
        """Call `ask` until its result is true. HTTP errors and missing keys count as not yet true."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError, KeyError):
                if answer := ask():
                    return answer
            assert self._process.poll() is None, self._log.read_text(encoding="utf-8")
            time.sleep(0.1)
        raise AssertionError(f"no result in {_PATIENCE_S} s:\n{self._log.read_text(encoding='utf-8')}\n{self.logs()}")

    def logs(self) -> str:
        """The workers' error output."""
        files = self.folder.glob("session_*/logs/worker-*.err")
        return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in set(map(Path.resolve, files)))

    def end(self) -> None:
        """Kill every process of the cluster, because an orderly stop of Ray takes half a minute."""
        self._api.close()
        while pids := session_members(self._process.pid):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._process.wait()


@contextlib.contextmanager
def importing_ray() -> Iterator[None]:
    """Ignore the warnings that importing Ray's own models gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticDeprecatedSince20)
        yield


def read_config(file: Path) -> "ServeDeploySchema":
    """Read a configuration for `serve deploy` as Ray does."""
    with importing_ray():
        from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415 - the import takes a second

    return ServeDeploySchema.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))


@contextlib.contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """A started cluster. Ray gives its start up after 30 s, too soon on a busy machine: then it starts again."""
    for attempts_left in (2, 1, 0):
        with _starting_cluster() as cluster:
            try:
                cluster.wait_until_started()
            except AssertionError:
                if attempts_left:
                    continue
                raise
            yield cluster
            return


@contextlib.contextmanager
def _starting_cluster() -> Iterator[Cluster]:
    # Directly in /tmp: a socket path has at most 107 characters, and Ray uses 70 of them.
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = Cluster(folder)
        stack.callback(cluster.end)
        yield cluster


def session_members(session: int) -> list[int]:
    """The running processes of a session (proc(5)). Ray's processes stay in the session of `ray start`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found
