"""What the images are made from, as far as it can be tried without building them."""

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import server
from app.api import health
from app.settings import Settings

ROOT = Path(__file__).parents[1]


def test_the_dockerfile_takes_torchs_version_from_the_one_pin_of_torch_npu() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    found = re.search(r"torch=\$\((sed .*pyproject\.toml)\)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert found
    version = subprocess.check_output(["bash", "-c", found[1]], cwd=ROOT, text=True).strip()
    pins = [requirement for requirement in extras["npu"] if requirement.startswith("torch")]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert len(pins) == 1
    assert re.fullmatch(rf"torch-npu=={re.escape(version)}(\.post\d+)?", pins[0])


def test_compose_starts_the_cpu_or_the_npu_service_and_by_default_the_cpu_service() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    profiles = {name: service["profiles"] for name, service in services.items()}
    assert profiles == {"pull": ["cpu"], "serve": ["cpu"], "pull-npu": ["npu"], "serve-npu": ["npu"]}
    for name, service in services.items():
        assert all(profiles[other] == profiles[name] for other in service.get("depends_on", {}))
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text(encoding="utf-8").splitlines()


# The end: whoever stops the service gives it the time to drain, and ten seconds for the rest.

Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    """Kubernetes objects, in files and in documents."""
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "deploy").rglob("*.y*ml")]
    for file in documents():
        texts += re.findall(r"^```ya?ml\n(.*?)^```", file.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [one for text in texts for one in yaml.safe_load_all(text) if "kind" in one]


def documents() -> list[Path]:
    """Where people read how the service is started."""
    return [ROOT / "README.md", *(ROOT / "deploy").rglob("*.md"), *(ROOT / "docs").glob("*.md")]


def grace_periods() -> Iterator[tuple[str, float, str | None]]:
    """Every grace period that is shipped, in seconds, and TURBO_DRAIN_S as it is set there."""
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
            assert grace, f"Docker would kill it after ten seconds: {command}"
            yield document.name, float(grace[1]), drain_s and drain_s[1]
    for manifest in manifests():
        pod = manifest["spec"]["template"]["spec"]
        for container in pod["containers"]:
            drain_s = {one["name"]: one["value"] for one in container["env"]}.get("TURBO_DRAIN_S")
            yield container["name"], pod["terminationGracePeriodSeconds"], drain_s


def test_every_grace_period_is_the_time_to_drain_and_ten_seconds_more() -> None:
    found = list(grace_periods())
    assert len(found) == 6
    for name, grace_s, drain_s in found:
        assert grace_s == float(drain_s or Settings().drain_s) + 10, name


def test_the_pod_is_probed_on_the_right_paths_and_allowed_nothing_that_it_does_not_need() -> None:
    (deployment,) = manifests()
    pod = deployment["spec"]["template"]["spec"]
    (serve,) = pod["containers"]
    paths = {probe: serve[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {
        "startupProbe": health.router.url_path_for("live"),
        "readinessProbe": health.router.url_path_for("ready"),
        "livenessProbe": health.router.url_path_for("live"),
    }
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 10001}.items()
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (serve, *pod["initContainers"]):
        locked = {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": False}
        assert container["securityContext"] == locked
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {"/tmp", "/weights"}  # noqa: S108 - the pod's own
        assert set(mounts.values()) <= volumes
        settings = {one["name"].removeprefix("TURBO_").lower(): one["value"] for one in container["env"]}
        assert settings.keys() <= Settings.model_fields.keys()
        Settings.model_validate(settings)
    npus = [name for name in serve["resources"]["limits"] if name.startswith("huawei.com/")]
    assert [serve["resources"]["requests"][name] for name in npus] == [1]


def test_what_the_end_takes_beside_the_drain_fits_into_the_ten_seconds() -> None:
    (deployment,) = manifests()
    (serve,) = deployment["spec"]["template"]["spec"]["containers"]
    before_s = int(serve["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert before_s + server._LAST_BYTES_S + 1 < 10  # noqa: SLF001 - a second for ticks and for saying good-bye


# Python in the npu image.


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The npu image's `python` with its paths moved to `tmp_path`, before one that prints what it is given."""
    text = (ROOT / "deploy" / "python-with-cann").read_text(encoding="utf-8")
    files = {
        "cann/bin/python": text.replace("/usr/local/Ascend", f"{tmp_path}/Ascend").replace("/opt", str(tmp_path)),
        "venv/bin/python": '#!/bin/bash\nprintf "%s\\n" "${CANN-none}" "${ATB-none}" "$@"; exit 7\n',
        "Ascend/ascend-toolkit/set_env.sh": 'echo noise; export CANN="sourced with $# arguments"\n',
        "Ascend/nnal/atb/set_env.sh": 'export ATB="$*"\n',
    }
    for name, content in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(content, encoding="utf-8")
        file.chmod(0o755)
    return tmp_path / "cann/bin/python"


def run(python: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "app", "a b"]
    environment = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_python_in_the_npu_image_reads_cann_s_environment_where_the_image_does_not_set_it(python: Path) -> None:
    done = run(python)
    assert done.stdout.splitlines() == ["sourced with 0 arguments", "--cxx_abi=1", "-m", "app", "a b"]
    assert done.returncode == 7


def test_python_in_the_npu_image_leaves_an_environment_that_is_set_as_it_is(python: Path) -> None:
    assert run(python, ASCEND_HOME_PATH="/cann").stdout.splitlines() == ["none", "none", "-m", "app", "a b"]


def test_python_in_the_npu_image_runs_without_cann_too(python: Path) -> None:
    for file in python.parents[2].glob("Ascend/**/set_env.sh"):
        file.unlink()
    assert run(python).stdout.splitlines() == ["none", "none", "-m", "app", "a b"]
