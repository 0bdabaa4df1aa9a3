"""The peers' environments: uv makes one for each peer from its requirements file, and remakes it if that changes."""

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

_SAME_FOR_ALL = ("accelerate", "diffusers", "numpy", "pillow", "safetensors", "torch", "transformers")
"""The libraries that make the picture. Peers get the service's versions, so figures do not depend on versions."""

TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
"""An index of CPU builds, because torch from PyPI includes gigabytes of CUDA. The Makefile sets the same variable."""

_SERVING = ("bentoml", "fastapi", "litserve", "openvino", "openvino-genai", "optimum-intel", "ray", "uvicorn")


class InstallError(Exception):
    """An environment could not be made; the text is the installer's error output."""


def make_environment(folder: Path, requirements: Path, *, like_service: bool) -> Path:
    """Make the environment unless it exists with the same requirements; return its interpreter.

    Args:
        folder: The environment's folder.
        requirements: The peer's requirements.txt. If there is an overrides.txt beside it, uv applies it.
        like_service: Whether the environment has the service's versions of the libraries that make the picture. A
            converter of models may need others; then only torch has the service's version.

    Raises:
        InstallError: The environment cannot be made.
    """
    constraints = [f"{name}=={_public_version(name)}" for name in (_SAME_FOR_ALL if like_service else ("torch",))]
    overrides = requirements.with_name("overrides.txt")
    text = "\n".join(
        [
            requirements.read_text(),
            *constraints,
            overrides.read_text() if overrides.exists() else "",
        ]
    )
    mark, python = folder / "made-from", folder / "bin" / "python"
    wanted = hashlib.sha256(text.encode()).hexdigest()
    if mark.exists() and mark.read_text() == wanted:
        return python
    print(f"installing {requirements.parent.name}", flush=True)
    _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
    into = ("pip", "install", "--quiet", "--python", str(python))
    _install_torch(into)
    pins = folder / "constraints.txt"
    pins.write_text("\n".join(constraints))
    more = ("--overrides", str(overrides)) if overrides.exists() else ()
    _uv(*into, "--requirements", str(requirements), "--constraints", str(pins), *more)
    mark.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that figures can depend on."""
    names = repr((*_SAME_FOR_ALL, *_SERVING))
    script = (
        "import importlib.metadata as m, json, platform\n"
        f"have = {{d.name.lower().replace('_', '-'): d.version for d in m.distributions() if d.name}}\n"
        f"print(json.dumps({{'python': platform.python_version()}} | {{n: have[n] for n in {names} if n in have}}))"
    )
    found: dict[str, str] = json.loads(subprocess.check_output([str(python), "-c", script], text=True))
    return found


def _public_version(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]


def _install_torch(into: tuple[str, ...]) -> None:
    """Install the CPU build of torch from its index, or else from pip's configured index."""
    torch = f"torch=={_public_version('torch')}"
    try:
        _uv(*into, "--default-index", TORCH_INDEX, torch)
    except InstallError:
        _uv(*into, torch)


def _uv(*arguments: str) -> None:
    """Run this environment's uv with pip's settings, because uv does not read pip's configuration.

    Raises:
        InstallError: uv failed.
    """
    environment = {
        "UV_SYSTEM_CERTS": "true",
        "UV_HTTP_RETRIES": "1",
        "UV_COMPILE_BYTECODE": "true",  # as pip does; otherwise compilation dominates start-up times
        **{name: value for name, value in _pip_settings().items() if value},
        **os.environ,
    }
    command = [str(Path(sys.executable).with_name("uv")), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InstallError(done.stderr.strip())


def _pip_settings() -> dict[str, str]:
    def ask(name: str) -> str:
        command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "UV_DEFAULT_INDEX": os.environ.get("PIP_INDEX_URL") or ask("index-url"),
        "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS") or ask("find-links"),
    }
