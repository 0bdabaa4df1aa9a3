"""deploy/ray on a real Ray: pictures, limits, faults, rolling updates and autoscaling."""

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from app.settings import Settings
from tests.conftest import ServerProcess
from tests.deploy.ray_cluster import ROOT, Cluster, ray_cluster, read_config
from tests.support.crowd import Wish, alike, pictures

CONFIG = ROOT / "deploy/ray/serve.yaml"
SHIPPED = "sdxl-turbo"

# Each replica takes some seconds to start, and a minute on a busy machine.
pytestmark = pytest.mark.timeout(600)

SLOW = {"TURBO_MODEL": "fake:8", "TURBO_MAX_QUEUE": "1", "TURBO_BATCHING": "off"}
FAST = {"TURBO_MODEL": "fake:0.05", "TURBO_DRAIN_S": "20", "TURBO_MAX_QUEU": "1"}  # the last one has a typo
DEMO = {"TURBO_MODEL": "demo", "TURBO_DEVICE": "cpu"}
GROWING = {"TURBO_MODEL": "fake:0.5", "TURBO_BATCHING": "off"}

AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 1,
    "upscale_delay_s": 2,
    "downscale_delay_s": 2,
    "look_back_period_s": 2,
    "metrics_interval_s": 0.5,
}
"""One request for each replica, and short times."""


def application(name: str, settings: dict[str, str], *, npus: int = 0, **replicas: Any) -> dict[str, Any]:
    """An application whose replicas name themselves in each response, at the route of its name.

    Args:
        replicas: The number of replicas, as options of Ray Serve.
    """
    return {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": "tests.deploy.observed_replica:build",
        "runtime_env": {"env_vars": settings},
        "deployments": [
            {
                "name": "SdxlTurbo",
                "ray_actor_options": {"num_cpus": 0, "resources": {"NPU": npus} if npus else {}},
                **replicas,
            }
        ],
    }


def applications(*, all_of_them: bool, **fast: str) -> list[dict[str, Any]]:
    """The shipped application on the fake with at least two replicas, and one or three others beside it."""
    (shipped,) = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["applications"]
    shipped["deployments"][0]["autoscaling_config"]["min_replicas"] = 2
    some = [
        shipped | {"runtime_env": {"env_vars": FAST | fast}},
        application("slow", SLOW, num_replicas=1),
    ]
    more = [
        application("demo", DEMO, npus=1, num_replicas=2),
        application("growing", GROWING, autoscaling_config=AUTOSCALING),
    ]
    return some + more if all_of_them else some


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with ray_cluster() as cluster:
        cluster.deploy(*applications(all_of_them=request.config.getoption("--long")))
        yield cluster


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The demo model without Ray, with the same number of threads. It may still be starting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        server = ServerProcess(tmp_path_factory.mktemp("single") / "log", model="demo", device="cpu")
    try:
        yield server
    finally:
        server.kill()


class Crowd:
    """Clients that request pictures of the fake in a loop, each on one connection, until the context ends."""

    def __init__(self, url: str, *, clients: int = 4) -> None:
        self._url = url
        self._clients = clients
        self._numbers = itertools.count()
        self._ends = threading.Event()
        self.answers: list[tuple[Wish, httpx.Response]] = []
        self.faults: list[httpx.HTTPError] = []

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(self._clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._ends.is_set():
                wish = Wish(prompt="a house", seed=next(self._numbers))
                try:
                    self.answers.append((wish, wish.send(client)))
                except httpx.HTTPError as error:
                    self.faults.append(error)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(response.status_code for _, response in self.answers)

    def assert_pictures_are_right(self) -> None:
        for wish, response in self.answers:
            if response.status_code == 200:
                assert response.headers["x-seed"] == str(wish.seed)
                assert alike(pictures(response), wish.painted())


@pytest.mark.long
@pytest.mark.only_long
def test_both_replicas_make_the_pictures_of_a_single_process_each_on_a_device_of_its_own(
    single: ServerProcess, cluster: Cluster
) -> None:
    cluster.wait_for_replicas("demo", 2)
    url = single.wait_until_started()
    devices_by_pid: dict[str, str] = {}
    with httpx.Client(timeout=60) as client:
        for seed in range(3):
            body = {"prompt": "a red circle on a blue background", "seed": seed}
            expected = client.post(f"{url}/txt2img", json=body)
            assert expected.status_code == 200
            for _ in range(20):
                response = client.post(f"{cluster.url}/demo/txt2img", json=body)
                assert response.content == expected.content
                devices_by_pid[response.headers["x-pid"]] = response.headers["x-devices"]
                if len(devices_by_pid) == 2 and seed:
                    break
    assert {int(pid) for pid in devices_by_pid} == cluster.running("demo")
    assert sorted(devices_by_pid.values()) == ["0", "1"]


def test_a_replica_s_own_refusal_arrives_and_who_leaves_the_queue_makes_room(cluster: Cluster) -> None:
    cluster.wait_for_replicas("slow", 1)
    url = f"{cluster.url}/slow"

    def waiting() -> int:
        queue: dict[str, int] = httpx.get(f"{url}/healthz/ready").json()["queue"]
        return queue["waiting"]

    with asking(cluster, "/slow/txt2img") as served, asking(cluster, "/slow/txt2img") as leaver:
        cluster.wait_for(lambda: waiting() == 1)
        refused = httpx.post(f"{url}/txt2img", json={"prompt": "a third"})
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert refused.headers["content-type"] == "application/problem+json"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        leaver.close()
        cluster.wait_for(lambda: waiting() == 0)
        served.setblocking(False)
        with pytest.raises(BlockingIOError):  # the first call still runs: the place comes from the client that left
            served.recv(1)


@contextlib.contextmanager
def asking(cluster: Cluster, path: str) -> Iterator[socket.socket]:
    """A connection on which a request for a picture was sent."""
    body = json.dumps({"prompt": "a house", "seed": 1}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", cluster.http_port), timeout=60) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        yield connection


def test_what_is_too_large_or_wrong_is_refused_by_the_service_and_headers_arrive(cluster: Cluster) -> None:
    cluster.wait_for_replicas(SHIPPED, 2)
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        large = client.post("/txt2img", content=b" " * 70_000, headers={"content-type": "application/json"})
        assert (large.status_code, large.json()["code"]) == (413, "body_too_large")
        made = client.post("/txt2img", json={"prompt": "a house", "seed": 3}, headers={"x-request-id": "mine"})
        assert made.headers["x-seed"] == "3"
        assert made.headers["server-timing"].startswith("queue;dur=")
        assert made.headers.get_list("x-request-id") == ["mine", "mine"]  # one from the service, one from Ray's proxy


def test_ray_s_limits_follow_from_the_settings_and_a_misspelt_one_is_warned_of(cluster: Cluster) -> None:
    cluster.wait_for_replicas(SHIPPED, 2)
    config = cluster.details(SHIPPED)["deployment_config"]
    assert config["graceful_shutdown_timeout_s"] == float(FAST["TURBO_DRAIN_S"]) + 10
    assert config["max_ongoing_requests"] == Settings().max_connections
    assert config["max_ongoing_requests"] > Settings().max_queue + Settings().max_batch
    assert config["max_queued_requests"] == -1  # Ray itself rejects nothing
    assert "TURBO_MAX_QUEU is not a setting; did you mean TURBO_MAX_QUEUE?" in cluster.logs()


@pytest.mark.long
@pytest.mark.only_long
def test_a_second_replica_comes_with_the_load_and_goes_with_it_and_nothing_is_lost(cluster: Cluster) -> None:
    cluster.wait_for_replicas("growing", 1)
    url = f"{cluster.url}/growing"
    with Crowd(url, clients=1) as stays:
        with Crowd(url, clients=7) as leaves:
            cluster.wait_for_replicas("growing", 2)
            answered = len(leaves.answers)
            cluster.wait_for(lambda: len(leaves.answers) > answered + 14)
        cluster.wait_for(lambda: len(cluster.details("growing")["replicas"]) == 1)
        answered = len(stays.answers)
        cluster.wait_for(lambda: len(stays.answers) > answered)
    for crowd in (stays, leaves):
        crowd.assert_pictures_are_right()
        assert crowd.faults == []
        assert crowd.statuses.keys() == {200}, crowd.statuses
    assert len({response.headers["x-pid"] for _, response in leaves.answers}) == 2


def test_a_killed_replica_is_replaced_and_no_answer_is_wrong(cluster: Cluster) -> None:
    before = cluster.wait_for_replicas(SHIPPED, 2)
    killed = min(before)
    with Crowd(cluster.url) as crowd:
        cluster.wait_for(lambda: len(crowd.answers) > 20)
        os.kill(killed, signal.SIGKILL)
        cluster.wait_for_replicas(SHIPPED, 2, but={killed})
        answered = len(crowd.answers)
        cluster.wait_for(lambda: len(crowd.answers) > answered + 20)
    crowd.assert_pictures_are_right()
    assert crowd.faults == []
    assert crowd.statuses.keys() <= {200, 500}, crowd.statuses
    assert crowd.statuses[500] <= 4, "more requests failed than the replica had in flight"
    assert crowd.statuses[200] > 40


@pytest.mark.long
@pytest.mark.only_long
def test_a_rolling_update_under_load_loses_nothing(cluster: Cluster) -> None:
    before = cluster.wait_for_replicas(SHIPPED, 2)
    with Crowd(cluster.url) as crowd:
        cluster.wait_for(lambda: len(crowd.answers) > 20)
        cluster.deploy(*applications(all_of_them=True, TURBO_LOG_LEVEL="warning"))
        cluster.wait_for_replicas(SHIPPED, 2, but=before)
        answered = len(crowd.answers)
        cluster.wait_for(lambda: len(crowd.answers) > answered + 20)
    crowd.assert_pictures_are_right()
    assert crowd.faults == []
    assert crowd.statuses.keys() == {200}, crowd.statuses


def test_a_replica_whose_device_is_lost_tells_who_waits_and_is_replaced(cluster: Cluster) -> None:
    (pid,) = cluster.wait_for_replicas("slow", 1)
    with asking(cluster, "/slow/txt2img") as waiting:
        cluster.wait_for(lambda: httpx.get(f"{cluster.url}/slow/healthz/ready").json()["queue"]["running_s"] > 0)
        httpx.get(f"{cluster.url}/slow/lose")
        answer = b""
        while b"device_lost" not in answer:
            answer += (received := waiting.recv(4096))
            assert received, answer
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 30" in answer
    cluster.wait_for(lambda: is_gone(pid))
    cluster.wait_for(lambda: cluster.details("slow")["replicas"][0]["state"] == "STARTING")


@pytest.mark.long
@pytest.mark.only_long
def test_a_replica_that_is_not_ready_is_replaced(cluster: Cluster) -> None:
    before = cluster.wait_for_replicas("demo", 2)
    unready = int(httpx.get(f"{cluster.url}/demo/unready").headers["x-pid"])
    assert unready in before
    cluster.wait_for(lambda: is_gone(unready))
    cluster.wait_for(lambda: cluster.running("demo") == before - {unready})


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_configuration_is_valid_for_ray_and_its_numbers_are_those_of_the_settings() -> None:
    config = read_config(CONFIG)
    assert config.http_options.host == "127.0.0.1"
    (one,) = config.applications
    assert one.import_path == "sdxl_turbo_ray:build"
    (deployment,) = one.deployments
    settings = Settings.model_validate(
        {name.removeprefix("TURBO_").lower(): value for name, value in one.runtime_env["env_vars"].items()}
    )
    autoscaling = deployment.autoscaling_config
    assert isinstance(autoscaling, dict)
    assert autoscaling["target_ongoing_requests"] == settings.max_batch
    when_full = (settings.max_queue + settings.max_batch) / settings.max_batch
    assert 1 + autoscaling["upscaling_factor"] * (when_full - 1) == pytest.approx(1.8)  # as in docs/scale-out.md
