"""What the images are made from, as far as it can be tried without building them."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


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
