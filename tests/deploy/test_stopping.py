"""Grace periods: every shipped configuration gives the service its drain time and ten seconds more."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from app.server.draining import LAST_BYTES_S
from app.settings import Settings
from tests.deploy.manifests import SHIPPED, documents, need_renderer, pod
from tools.kubernetes.checks import GRACE_S
from tools.kubernetes.kustomize import render

ROOT = Path(__file__).parents[2]


def grace_periods() -> Iterator[tuple[str, float, str | None]]:
    """Each shipped grace period: its name, its seconds, and the TURBO_DRAIN_S that is set with it."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    for name, service in services.items():
        if service.get("command") == ["serve"]:
            yield name, float(service["stop_grace_period"].removesuffix("s")), service["environment"]["TURBO_DRAIN_S"]
    for unit in (ROOT / "deploy").rglob("*.service"):
        text = unit.read_text(encoding="utf-8")
        drain_s = re.search(r"^Environment=.*TURBO_DRAIN_S=(\S+)", text, re.MULTILINE)
        (grace_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
        yield unit.name, float(grace_s), drain_s and drain_s[1]
    for document in documents():
        for command in re.findall(
            r"^docker run [^`]*?sdxl-turbo-server.*?(?<!\\)$",
            document.read_text(encoding="utf-8"),
            re.DOTALL | re.MULTILINE,
        ):
            drain_s, grace = (re.search(rf"{name}[= ](\S+)", command) for name in ("TURBO_DRAIN_S", "--stop-timeout"))
            assert grace, f"Docker would kill the service after ten seconds: {command}"
            yield document.name, float(grace[1]), drain_s and drain_s[1]


def test_every_grace_period_is_the_time_to_drain_and_ten_seconds_more() -> None:
    found = list(grace_periods())
    assert len(found) == 8
    for name, grace_s, drain_s in found:
        assert grace_s == float(drain_s or Settings().drain_s) + GRACE_S, name


@pytest.mark.parametrize("overlay", SHIPPED, ids=lambda overlay: overlay.name)
def test_so_is_that_of_pods_and_what_the_end_takes_beside_the_drain_fits_into_the_ten_seconds(overlay: Path) -> None:
    need_renderer()
    ending = pod(render(overlay))
    (serve,) = ending["containers"]
    (drain_s,) = [one["value"] for one in serve["env"] if one["name"] == "TURBO_DRAIN_S"]
    assert ending["terminationGracePeriodSeconds"] == float(drain_s) + GRACE_S
    before_s = int(serve["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert before_s + LAST_BYTES_S + 1 < GRACE_S  # one second for the server's ticks and the exit
