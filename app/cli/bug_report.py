"""A report for the people who mend faults: one ZIP file with what the doctor found, versions, settings and pictures."""

import errno
import importlib.metadata
import io
import json
import os
import platform
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from app import __version__
from app.cli.doctor import Finding, Pictures, examine, report
from app.cli.tuning.tuned_file import read_table
from app.errors import TurboError, program
from app.main import key_names
from app.settings import PREFIX, Settings

_PACKAGES = (
    *("torch", "torch_npu", "diffusers", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "pillow"),
    *("fastapi", "starlette", "uvicorn", "pydantic", "openmind_hub", "huggingface_hub", "isal", "triton"),
)

_VARIABLES = re.compile(r"ASCEND|PYTORCH|TORCH|OMP|MKL|CUDA|NVIDIA|ACLNN|TASK_QUEUE|CPU_AFFINITY|LD_PRELOAD|MALLOC")
"""Beginnings of the names of variables that change how pictures are computed."""

_SECRET = re.compile(r"TOKEN(?!IZER)|KEY|SECRET|PASS|PWD$|_PROXY|CREDENTIAL|AUTH", re.IGNORECASE)
"""Names of variables whose values must not appear anywhere."""

_CREDENTIALS = re.compile(r"//[^/\s@]+@")
"""In an URL."""

_LEAST_SECRET = 4
"""Shorter values are no secrets, and would hide other text."""

_PRIVATE_SETTINGS = {"api_keys_file", "host", "trusted_proxies", "cors_origins", "aigc_producer"}
"""Settings that say something about the operator and nothing about pictures."""


def diagnose(settings: Settings, file: Path, *, as_json: bool) -> int:
    """Check everything, print the findings, write the report to a file, and return the exit code."""
    pictures: Pictures = {}
    found: list[Finding] = []
    if fault := _fault_of(file):
        print(f"{file} cannot be written: {fault}.", file=sys.stderr)  # noqa: T201
        return 1

    def recorded() -> Iterator[Finding]:
        for finding in examine(settings, pictures=pictures):
            found.append(finding)
            yield finding

    code = report(recorded(), as_json=as_json)
    try:
        write_report(file, settings, found, pictures)
    except OSError as error:
        print(f"{file} cannot be written: {error.strerror}.", file=sys.stderr)  # noqa: T201
        return 1
    print(f"{file} has the report. Look at it before you pass it on.", file=sys.stderr)  # noqa: T201
    return code


def _fault_of(file: Path) -> str:
    """Return why a file cannot be written, before minutes are spent; an empty text if it can be."""
    try:
        with tempfile.TemporaryFile(dir=file.resolve().parent):
            return f"{os.strerror(errno.EISDIR)}" if file.is_dir() else ""
    except OSError as error:
        return error.strerror or str(error)


def write_report(path: Path, settings: Settings, findings: Sequence[Finding], pictures: Pictures) -> None:
    """Write the report as a ZIP file: `report.md` for people, `report.json` for programs, and a PNG for each mode.

    Values of variables that may be secret, credentials in URLs, names of API keys, the host and the home folder are
    replaced wherever they appear.

    Raises:
        OSError: The file cannot be written.
    """
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "service": __version__,
        "system": dict(_system()),
        "packages": dict(_packages()),
        "settings": dict(_settings(settings)),
        "variables": {name: value for name, value in sorted(os.environ.items()) if _is_shown(name)},
        "findings": [asdict(finding) for finding in findings],
        "tune": _tune_table(settings),
    }
    facts = _without_secrets(facts, list(_replacements(settings)))
    scratch = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("report.md", "\n".join(_lines(facts)))
            archive.writestr("report.json", json.dumps(facts, indent=1))
            for mode, pixels in pictures.items():
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "PNG")
                archive.writestr(f"{mode}.png", png.getvalue())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _system() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    yield "platform", platform.platform()
    yield "machine", platform.machine()
    yield "cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    with suppress(OSError, ValueError):
        yield "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    with suppress(OSError):
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        yield from [("processor", name) for name in names[:1]]


def _packages() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def _settings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield the settings that differ from the defaults, as variables."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if name in settings.model_fields_set and value != Settings.model_fields[name].default:
            yield f"{PREFIX}{name.upper()}", "(set)" if name in _PRIVATE_SETTINGS else str(value)


def _is_shown(name: str) -> bool:
    return bool(_VARIABLES.match(name)) and not _SECRET.search(name)


def _tune_table(settings: Settings) -> str:
    path = settings.env_file or Path("turbo.env")
    with suppress(OSError):
        return read_table(path) or ""
    return ""


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"# sdxl-turbo-server {facts['service']}, {facts['date']}"
    yield "\n## Checks\n"
    yield from ["```text", *(str(Finding(**finding)) for finding in facts["findings"]), "```"]
    for title in ("system", "packages", "settings", "variables"):
        yield f"\n## {title.capitalize()}\n"
        yield from ["```text", *(f"{name}={value}" for name, value in facts[title].items()), "```"]
    yield "\n## Tune\n"
    yield from ["```text", facts["tune"] or f"No table: `{program()} tune` has not run here.", "```"]


def _replacements(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield texts that must not appear, each with what takes its place."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _LEAST_SECRET and value.lower() not in ("true", "false"):
            yield value, f"({name})"
    with suppress(OSError, TurboError):
        if settings.api_keys_file is not None:
            yield from ((name, "(name)") for name in key_names(settings.api_keys_file))
    if settings.host not in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):  # noqa: S104 - it is not bound here
        yield settings.host, "(host)"
    if (home := str(Path.home())) != "/":
        yield home, "~"


def _without_secrets(value: Any, replacements: Sequence[tuple[str, str]]) -> Any:
    """Replace secrets in all texts of a value that JSON can have."""
    if isinstance(value, dict):
        return {name: _without_secrets(item, replacements) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item, replacements) for item in value]
    if isinstance(value, str):
        for secret, shown in replacements:
            value = value.replace(secret, shown)
        return _CREDENTIALS.sub("//(credentials)@", value)
    return value
