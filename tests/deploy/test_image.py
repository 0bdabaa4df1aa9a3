"""Checks of the Dockerfile, its scripts and the compose file that need no image to be built."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__
from app.settings import Settings, unknown_variables
from app.weights.source import HubSource, parse_source
from tests.conftest import StartServer, program

ROOT = Path(__file__).parents[2]
TARGETS = ("cpu", "cuda", "npu")
VAE = "hf:madebyollin/taesdxl"


# The Dockerfile.


def stages() -> dict[str, list[str]]:
    """The Dockerfile's stages; each has also the instructions of the stages that it builds on."""
    found: dict[str, list[str]] = {}
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    for line in (line for line in lines if line and not line.startswith("#")):
        if stage := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[stage[2]] = list(found.get(stage[1], []))
        elif found:
            list(found.values())[-1].append(line)
    return found


def last(instructions: list[str], name: str) -> str:
    """The arguments of the last instruction of this name."""
    return [line.split(maxsplit=1)[1] for line in instructions if line.startswith(f"{name} ")][-1]


def variables(instructions: list[str]) -> dict[str, str]:
    """The variables of the service that an image sets."""
    return dict(re.findall(r"(TURBO_\w+)=(\S+)", " ".join(line for line in instructions if line.startswith("ENV "))))


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_the_service_itself_as_pid_1_and_as_a_user_by_number(target: str) -> None:
    instructions = stages()[target]
    uid, gid = last(instructions, "USER").split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert json.loads(last(instructions, "ENTRYPOINT")) == ["python", "-m", "app"]
    assert json.loads(last(instructions, "CMD")) == ["serve"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_runs_is_installed_elsewhere_and_brings_its_bill_of_materials(target: str) -> None:
    instructions = stages()[target]
    assert not [
        line for line in instructions if line.startswith("RUN ") and re.search(r"\b(apt(-get)?|pip|venv)\b", line)
    ]
    copies = [line for line in instructions if line.startswith("COPY --from=build-")]
    assert copies == [f"COPY --from=build-{target} {folder} {folder}" for folder in ("/opt/venv", "/usr/share/sbom")]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_for_a_device_never_falls_back_to_another(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = variables(stages()[target])
    assert not unknown_variables(ours)
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.device == ("auto" if target == "cpu" else target)
    assert f"EXPOSE {settings.port}" in stages()[target]


def test_an_image_names_the_service_s_version() -> None:
    assert f"ARG VERSION={__version__}" in stages()["runtime"]
    assert 'image.version="${VERSION}"' in last(stages()["runtime"], "LABEL")


def test_what_the_dockerfile_copies_is_let_into_the_build() -> None:
    let_in = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    }
    copied = [line.split()[1:-1] for instructions in stages().values() for line in instructions if line[:5] == "COPY "]
    files = {word for words in copied for word in words if not words[0].startswith("--from") and word[:2] != "--"}
    assert files == let_in
    assert all((ROOT / file).exists() for file in files)


def test_the_dockerfile_takes_what_it_installs_first_from_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (sbom,) = [line for line in project["dependency-groups"]["dev"] if line.startswith("cyclonedx-bom")]
    extras = project["project"]["optional-dependencies"]
    commands = re.findall(r'"\$\((sed .*pyproject\.toml)\)"', (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    found = [subprocess.check_output(["bash", "-c", command], cwd=ROOT, text=True).strip() for command in commands]
    assert found == [sbom, *extras["cpu"], *extras["cuda"]]


def test_the_dockerfile_takes_torchs_version_from_the_pins_of_torch_npu() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    found = re.search(r"torch=\$\((sed .*pyproject\.toml)\)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert found
    version = subprocess.check_output(["bash", "-c", found[1]], cwd=ROOT, text=True).strip()
    pins = [requirement for requirement in extras["npu"] if requirement.startswith("torch")]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert pins
    assert all(re.fullmatch(rf"torch-npu=={re.escape(version)}(\.post\d+)?(; .*)?", pin) for pin in pins)


# The health check.


def health(**settings: object) -> subprocess.CompletedProcess[str]:
    """Run the image's health check with these settings."""
    file = {"/opt/healthcheck.py": ROOT / "deploy/healthcheck.py"}
    command = json.loads(last(stages()["runtime"], "HEALTHCHECK").partition("CMD ")[2])
    assert command[0] == "python"
    environment = {**os.environ, **{f"TURBO_{name.upper()}": str(value) for name, value in settings.items()}}
    return subprocess.run(
        [sys.executable, *(file.get(word, word) for word in command[1:])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_health_check_asks_the_service_at_its_own_address_and_says_why_not(start_server: StartServer) -> None:
    host = "127.0.0.2"
    server = start_server(model="fake", host=host)
    port = int(server.wait_until_started().rpartition(":")[2])
    done = health(host=host, port=port)
    assert (done.returncode, done.stderr) == (0, "")
    server.terminate()
    server.wait()
    done = health(host=host, port=port)
    assert done.returncode == 1
    assert re.fullmatch(rf"{host}, port {port}: .*refused\n", done.stderr)


# Compose.

Service = dict[str, Any]


@pytest.fixture(scope="module", params=TARGETS)
def profile(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def services(profile: str) -> dict[str, Service]:
    """A profile's services as docker-compose resolves them, with device number 3."""
    environment = {"PATH": os.environ["PATH"], "GPU": "3", "NPU": "3"}
    environment |= {"HF_TOKEN": "a token", "HTTPS_PROXY": "http://proxy.example:3128", "TURBO_VAE": VAE}
    command = [program("docker-compose"), "--profile", profile, "config"]
    text = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
    return {name: one for name, one in yaml.safe_load(text)["services"].items() if profile in one["profiles"]}


@pytest.fixture
def serve(services: dict[str, Service]) -> Service:
    return next(service for name, service in services.items() if name.startswith("serve"))


@pytest.fixture
def pull(services: dict[str, Service]) -> Service:
    return next(service for name, service in services.items() if name.startswith("pull"))


def test_a_profile_of_compose_pulls_the_weights_and_then_serves_them(
    profile: str, services: dict[str, Service], pull: Service, serve: Service
) -> None:
    end = "" if profile == "cpu" else f"-{profile}"
    assert services.keys() == {f"pull{end}", f"serve{end}"}
    assert (pull["command"], serve["command"]) == (["pull"], ["serve"])
    assert serve["depends_on"] == {f"pull{end}": {"condition": "service_completed_successfully"}}
    assert (pull["image"], pull["user"]) == (serve["image"], serve["user"])
    assert serve["environment"].items() <= pull["environment"].items()
    assert serve["environment"]["TURBO_VAE"] == VAE
    volume = f"weights:{variables(stages()[profile])['TURBO_WEIGHTS_DIR']}:rw"
    assert volume in pull["volumes"]
    assert volume in serve["volumes"]


def test_compose_builds_the_target_of_the_profile(profile: str, pull: Service, serve: Service) -> None:
    for service in (pull, serve):
        assert service["build"]["target"] == profile
        for name in service["build"].get("args", {}):
            assert re.search(rf"^ARG {name}\b", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_variables_of_compose_are_settings(profile: str, serve: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**variables(stages()[profile]), **serve["environment"]}
    assert not unknown_variables(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert isinstance(parse_source(settings.model), HubSource) == (profile != "cpu")
    assert serve["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}/tcp"]


def test_compose_locks_the_container(pull: Service, serve: Service) -> None:
    for service in (pull, serve):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["tmpfs"] == ["/tmp"]  # noqa: S108 - a path in the container
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])


def test_compose_gives_the_device_to_who_serves_alone(profile: str, pull: Service, serve: Service) -> None:
    def devices(service: Service) -> Iterator[str]:
        yield from service.get("devices", [])
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", []):
            assert device["capabilities"] == ["gpu"]
            yield from (f"{device['driver']} {number}" for number in device["device_ids"])

    assert list(devices(pull)) == []
    runtime = {"cpu": {}, "cuda": {"NVIDIA_VISIBLE_DEVICES": "void"}, "npu": {"ASCEND_VISIBLE_DEVICES": "void"}}[
        profile
    ]
    assert runtime.items() <= pull["environment"].items(), (
        "a default runtime would give the container the devices that the image names"
    )
    first = {"cpu": None, "cuda": "nvidia 3", "npu": "/dev/davinci3"}[profile]
    assert next(devices(serve), None) == first


def test_compose_hands_the_hub_s_token_and_the_proxy_to_who_pulls_alone(pull: Service, serve: Service) -> None:
    hub = {"HF_TOKEN": "a token", "HTTPS_PROXY": "http://proxy.example:3128"}
    assert hub.items() <= pull["environment"].items()
    assert not hub.keys() & serve["environment"].keys()


def test_compose_asks_for_health_as_the_image_does(pull: Service, serve: Service) -> None:
    check = serve["healthcheck"]
    assert pull["healthcheck"] == {"test": ["NONE"]}
    assert check["test"] == ["CMD", *json.loads(last(stages()["runtime"], "HEALTHCHECK").partition("CMD ")[2])]
    options = dict(re.findall(r"--([a-z-]+)=(\w+)", last(stages()["runtime"], "HEALTHCHECK")))
    assert options == {
        "interval": check["interval"],
        "timeout": check["timeout"],
        "start-period": "600s",
        "retries": str(check["retries"]),
    }
    assert check["start_period"] == "10m"


def test_without_a_profile_compose_takes_the_one_for_cpu() -> None:
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text(encoding="utf-8").splitlines()


def check_schema(file: Path) -> subprocess.CompletedProcess[str]:
    """Validate a compose file against the Compose Specification, which the plugin `docker compose` follows."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_compose_file_keeps_to_the_compose_specification(tmp_path: Path) -> None:
    done = check_schema(ROOT / "docker-compose.yml")
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "docker-compose.yml"
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    wrong.write_text(text.replace("stop_grace_period", "grace_period"), encoding="utf-8")
    done = check_schema(wrong)
    assert done.returncode == 1
    assert "grace_period" in done.stdout


# Python in the npu image.


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The npu image's `python` with its paths moved to `tmp_path`. It runs a stand-in that prints its arguments."""
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
