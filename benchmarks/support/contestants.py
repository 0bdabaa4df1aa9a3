"""The contestants: the service and its peers, and how each of them starts."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.support import process_tree
from benchmarks.support.http_client import Answer, Connection
from benchmarks.support.load import Outcome, closed_loop, open_loop
from benchmarks.support.pictures import Picture, Prompts
from benchmarks.support.ports import free_port

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "benchmarks" / "peers"

_START_LIMIT_S = 300
_REFUSAL_LIMIT_S = 20
"""A server that answers with another status than 200 may still be starting; after this time it has failed."""

_POLL_S = 0.05
_OK = 200


class StartError(Exception):
    """A contestant did not start; the text is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One server, or one engine without a server."""

    key: str
    title: str
    peer: str | None = None
    """The peer's folder in `peers/`. None stands for the service, which runs in this environment."""

    command: tuple[str, ...]
    """Arguments of the interpreter; `{port}` and `{peer}` are filled in."""

    path: str = "/generate"
    settings: Mapping[str, str] = field(default_factory=dict)
    """Additional environment variables."""

    like_service: bool = True
    """Whether the peer's environment has the service's versions of torch, diffusers and similar libraries."""

    serves: bool = True
    """Whether the contestant has an HTTP server. Otherwise it reads requests from standard input, one after another."""

    @property
    def is_ours(self) -> bool:
        return self.peer is None


def _ours(key: str, title: str, **settings: str) -> Contestant:
    return Contestant(key=key, title=title, command=("-m", "app", "serve"), path="/txt2img", settings=settings)


CONTESTANTS = (
    _ours("ours", "this service"),
    _ours("ours-exact", "this service, exact batching", TURBO_BATCHING="exact"),
    _ours("ours-fast", "this service, fast batching", TURBO_BATCHING="fast"),
    Contestant(key="plain", title="plain FastAPI", peer="plain", command=("{peer}/server.py",)),
    Contestant(key="litserve", title="LitServe", peer="litserve", command=("{peer}/server.py",)),
    Contestant(
        key="bentoml",
        title="BentoML",
        peer="bentoml",
        command=(
            *("-m", "bentoml", "serve", "service:Turbo", "--working-dir", "{peer}"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        settings={"BENTOML_DO_NOT_TRACK": "true"},
    ),
    Contestant(
        key="ray",
        title="Ray Serve",
        peer="ray_serve",
        command=("{peer}/server.py",),
        settings={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
    Contestant(
        key="openvino",
        title="OpenVINO GenAI, no server",
        peer="openvino_genai",
        command=("{peer}/worker.py",),
        like_service=False,
        serves=False,
    ),
)

DEFAULT = ("ours", "plain", "litserve", "bentoml", "ray", "openvino")


def environment(model: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every measured process: the same model, no network, no progress bars.

    Unless `settings` say otherwise: fp32, and one thread.
    """
    return os.environ | {
        "BENCH_DTYPE": "float32",
        "BENCH_MODEL": str(model),
        "BENCH_MODEL_OPENVINO": f"{model}-openvino",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1",
        "MKL_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TRANSFORMERS_VERBOSITY": "error",
        "TURBO_DEVICE": "cpu",
        "TURBO_MODEL": str(model),
        **settings,
    }


class Running:
    """A running contestant.

    `ready_s` is the time from the start of the process until its readiness check succeeds. `first_picture_s` is the
    time until its first answer with a 512x512 picture, and `start_cpu_s` the CPU time until then. Peers have no
    readiness check, so their `ready_s` equals `first_picture_s`.
    """

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.ready_s = self.first_picture_s = self.start_cpu_s = 0.0

    @property
    def pid(self) -> int:
        """The root of the process tree."""
        return self._process.pid

    def ask(self, pictures: Sequence[Picture], *, clients: int) -> list[Outcome]:
        """Request the pictures in a closed loop with `clients` clients."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop the whole process tree."""
        process_tree.end(self.pid)
        self._process.wait()

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise StartError(f"exited with code {self._process.returncode}: {lines[-1]}")


class RunningServer(Running):
    """A running server."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, *, port: int, path: str) -> None:
        super().__init__(process, log)
        self.port = port
        self.path = path

    def wait(self, began: float, *, ready_path: str | None) -> None:
        """Wait for the first picture.

        Raises:
            StartError: The server exited, or the start takes too long.
        """
        if ready_path:
            asyncio.run(self._poll(began, ready_path, None))
        self.ready_s = time.perf_counter() - began
        asyncio.run(self._poll(began, self.path, Picture(512, Prompts.KEPT, 0).body))
        self.first_picture_s = time.perf_counter() - began
        self.ready_s = self.ready_s if ready_path else self.first_picture_s
        self.start_cpu_s = process_tree.cpu_seconds(self.pid)

    def ask(self, pictures: Sequence[Picture], *, clients: int) -> list[Outcome]:
        return asyncio.run(closed_loop(self.port, self.path, pictures, clients=clients))

    def ask_openly(self, pictures: Sequence[Picture], *, per_second: float) -> list[Outcome]:
        """Request the pictures in an open loop."""
        return asyncio.run(open_loop(self.port, self.path, pictures, per_second=per_second))

    async def _poll(self, began: float, path: str, body: bytes | None) -> None:
        answered = None
        while time.perf_counter() - began < _START_LIMIT_S:
            self._check_alive()
            try:
                async with Connection(self.port) as connection:
                    answer: Answer = await (connection.get(path) if body is None else connection.post(path, body))
                if answer.status == _OK:
                    return
                answered = answered or time.perf_counter()
                if time.perf_counter() - answered > _REFUSAL_LIMIT_S:
                    raise StartError(f"answers with {answer.status}: {answer.body[:200]!r}")
            except (OSError, asyncio.IncompleteReadError):
                pass
            await asyncio.sleep(_POLL_S)
        raise StartError(f"no answer within {_START_LIMIT_S} s")


class RunningEngine(Running):
    """A running engine without a server."""

    def wait(self, began: float) -> None:
        """Wait for the first picture.

        Raises:
            StartError: The engine exited.
        """
        self._hear()
        self.ask([Picture(512, Prompts.KEPT, 0)], clients=1)
        self.ready_s = self.first_picture_s = time.perf_counter() - began
        self.start_cpu_s = process_tree.cpu_seconds(self.pid)

    def ask(self, pictures: Sequence[Picture], *, clients: int) -> list[Outcome]:
        """Request the pictures one after another. The outcomes have no bytes: the pictures stay in the engine."""
        assert clients == 1
        assert self._process.stdin
        request = {"side": pictures[0].side, "pictures": [(picture.prompt, picture.seed) for picture in pictures]}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        latencies = json.loads(self._hear())["latencies_s"]
        return [Outcome(picture, _OK, b"", latency) for picture, latency in zip(pictures, latencies, strict=True)]

    def _hear(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._check_alive()
        return line


def start(contestant: Contestant, python: Path, model: Path, logs: Path) -> Running:
    """Start a contestant and wait for its first picture.

    Raises:
        StartError: The contestant does not start.
    """
    port = free_port()
    peer = str(PEERS / contestant.peer) if contestant.peer else ""
    settings = {"BENCH_PORT": str(port), "TURBO_PORT": str(port), **contestant.settings}
    command = [str(python), *(word.format(port=port, peer=peer) for word in contestant.command)]
    began = time.perf_counter()
    process = launch(command, environment(model, settings), logs / f"{contestant.key}.log", talks=not contestant.serves)
    running: RunningServer | RunningEngine
    try:
        if contestant.serves:
            running = RunningServer(process, logs / f"{contestant.key}.log", port=port, path=contestant.path)
            running.wait(began, ready_path="/healthz/ready" if contestant.is_ours else None)
        else:
            running = RunningEngine(process, logs / f"{contestant.key}.log")
            running.wait(began)
    except BaseException:
        process_tree.end(process.pid)
        raise
    return running


def launch(
    command: Sequence[str], env: Mapping[str, str], log: Path, *, talks: bool = False
) -> "subprocess.Popen[str]":
    """Start a process in its own session, with its output in a log. If it `talks`, stdin and stdout are pipes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        return subprocess.Popen(
            command,
            env=env,
            cwd=ROOT,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else file,
            stderr=file,
            text=True,
            start_new_session=True,
        )


def interpreter() -> Path:
    """Return this environment's interpreter, which runs the service."""
    return Path(sys.executable)
