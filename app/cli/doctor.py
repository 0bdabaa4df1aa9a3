"""The doctor: checks everything that serving needs, and names each fault with its remedy."""

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from app.cli.stdout import own_stdout
from app.errors import TurboError, first_line, root_cause
from app.inference.registry import LOAD_LIMITS
from app.inference.samples import sample_pictures
from app.main import key_names, load_weights
from app.pipelines.base import GenerationParams, Mode
from app.pipelines.npu import host as ascend_host
from app.server.address import check_address
from app.settings import Settings, parse_sizes, unknown_variables
from app.weights.layout import VAE, Layout, model_layout
from app.weights.lora import LORA, LoraFile, lora_file, parse_loras
from app.weights.source import FakeSource, WeightsSource, parse_source, parse_vae
from app.weights.store import locate

T = TypeVar("T")
Level = Literal["OK", "WARN", "FAIL"]

_CANN_OF_TORCH_NPU = {"2.12": "9.1"}
"""Pairs from COMPATIBILITY.md of Ascend/pytorch, for the versions of torch that the service supports."""

_NEEDED_BYTES = 8 << 30
"""Free memory of an accelerator below which the doctor warns: SDXL-Turbo's fp16 weights take 7 GB, and tensors need
more. On a CPU, loading says what is needed."""

_LIMITS_TO_COMPILE, _LIMITS = 20, 3
"""Hang limits that a check of three pictures may take, with and without compilation of the first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    level: Level
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:<5} {self.check:<14} {' '.join([self.detail, self.remedy]).strip()}"


Pictures = dict[Mode, npt.NDArray[np.uint8]]
"""The pixels of a finished picture in each mode, of shape (height, width, 3)."""

Findings = Generator[Finding, None, T]
"""Yields findings, and returns a value for later checks."""


def report(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print findings to stdout one by one, or as JSON at the end, and return the exit code: 1 if a check failed."""
    found: list[Finding] = []
    with own_stdout() as stdout, suppress(BrokenPipeError):  # a reader such as `head` may stop early
        for finding in findings:
            found.append(finding)
            if not as_json:
                print(finding, file=stdout, flush=True)
        levels = [finding.level for finding in found]
        summary = f"{levels.count('FAIL')} failed, {levels.count('WARN')} to look at"
        if as_json:
            answer = {"healthy": "FAIL" not in levels, "findings": [asdict(finding) for finding in found]}
            summary = json.dumps(answer, indent=1)
        print(summary, file=stdout, flush=True)
    return int(any(finding.level == "FAIL" for finding in found))


def examine(settings: Settings, *, root: Path = Path("/"), pictures: Pictures | None = None) -> Iterator[Finding]:
    """Check everything, ordered so that the first failure is the first to repair.

    `pictures` receives a picture of each mode.

    If a check fails, the checks that depend on it are left out. Every exception becomes a finding. Blocks; the device
    is opened on a separate thread, which is abandoned if the device hangs: then only `os._exit` ends the process.
    `root` is the folder of the host's files.
    """
    if (3, 11) <= sys.version_info[:2] <= (3, 14):
        yield Finding("python", "OK", platform.python_version())
    else:
        yield Finding("python", "FAIL", platform.python_version(), "Install Python 3.11, 3.12, 3.13 or 3.14.")
    yield from _env_file(settings)
    for name, nearest in unknown_variables(os.environ):
        yield Finding("settings", "WARN", f"{name} is not a setting.", f"Did you mean {nearest}?" if nearest else "")
    yield from _caught("port", _port(settings))
    yield from _caught("doors", _doors(settings))
    try:
        source, vae, loras = parse_source(settings.model), parse_vae(settings.vae), parse_loras(settings.lora)
    except TurboError as error:
        yield Finding("model", "FAIL", str(error))
        return
    if isinstance(source, FakeSource):
        yield Finding("model", "WARN", "The fake makes no real pictures and needs no device.", "Set TURBO_MODEL.")
        return
    usable = yield from _caught("torch", _packages(settings))
    place = yield from _caught("weights", _weights(source, settings))
    vae_folder = None
    if vae is not None:
        vae_folder = yield from _caught("vae", _located("vae", vae, settings, VAE))
        place = vae_folder and place  # the model is not loaded without the VAE that the settings name
    files = []
    for lora in loras:
        if found := (yield from _caught("lora", _located("lora", lora.source, settings, LORA))):
            files.append(LoraFile(lora_file(found), lora.name, lora.weight))
        else:
            place = None  # nor without a LoRA
    if _wants_npu(settings):
        index = int(settings.device.partition(":")[2] or 0)
        number = ascend_host.device_number(os.environ, index, root)
        yield from _caught("cann", _cann(root))
        yield from _caught("driver", _driver(root))
        yield from _caught("npu-smi", _npu_smi(number))
        yield from _caught("device files", _device_files(number, root))
    if usable:
        made = {} if pictures is None else pictures
        yield from _unless_hung(_device(settings, place, vae_folder, files, made), settings)


def _caught(check: str, findings: Findings[T]) -> Findings[T | None]:
    """Pass on findings and their return value; turn an exception into a finding and return None."""
    try:
        return (yield from findings)
    except TurboError as error:
        yield Finding(check, "FAIL", error.detail, error.remedy)
    except Exception as error:  # noqa: BLE001 - the process's edge: any other fault is a finding, too
        yield Finding(check, "FAIL", f"{type(error).__name__}: {first_line(error)}.")
    return None


def _unless_hung(findings: Iterator[Finding], settings: Settings) -> Iterator[Finding]:
    """Pass on findings that a separate thread makes, and abandon the thread if it makes none for too long."""
    limits = _LIMITS_TO_COMPILE if settings.compile == "on" or settings.npu_graphs else _LIMITS
    limit_s = settings.hang_limit_s * limits
    thread = ThreadPoolExecutor(1, thread_name_prefix="doctor")
    try:
        while finding := thread.submit(next, findings, None).result(limit_s):
            yield finding
            loading = finding.check == "canary"  # the next check loads the weights
            limit_s = settings.hang_limit_s * (max(limits, LOAD_LIMITS) if loading else limits)
    except TimeoutError:
        remedy = "If it may still be loading or compiling, set TURBO_HANG_LIMIT_S higher; else reset the device."
        yield Finding("device", "FAIL", f"The device has not answered for {limit_s:g} s.", remedy)


def _env_file(settings: Settings) -> Findings[None]:
    if (path := settings.env_file) is not None:
        if path.is_file():
            yield Finding("settings", "OK", f"{path} is read; variables that are set override it.")
        else:
            yield Finding("settings", "OK", f"TURBO_ENV_FILE={path} does not exist yet: `tune` writes it.")


def _port(settings: Settings) -> Findings[None]:
    check_address(settings.host, settings.port)
    yield Finding("port", "OK", f"{settings.host}:{settings.port} is free.")


def _doors(settings: Settings) -> Findings[None]:
    if settings.api_keys_file is not None:
        yield Finding("doors", "OK", f"API keys of {', '.join(key_names(settings.api_keys_file))}.")
    elif settings.host not in ("127.0.0.1", "::1", "localhost"):
        detail = f"Every client that can reach {settings.host}:{settings.port} may request pictures."
        yield Finding("doors", "WARN", detail, "Set TURBO_API_KEYS_FILE, unless a proxy or the network limits access.")


def _wants_npu(settings: Settings) -> bool:
    return settings.device.startswith("npu") or (settings.device == "auto" and _version_of("torch_npu") is not None)


def _packages(settings: Settings) -> Findings[bool]:
    """Check torch and torch_npu; return whether they are usable."""
    torch_version, npu_version = _version_of("torch"), _version_of("torch_npu")
    if torch_version is None:
        yield Finding("torch", "FAIL", "torch is not installed.", "Install the service's extra: cpu, cuda or npu.")
        return False
    if npu_version is None and _wants_npu(settings):
        remedy = f"Install torch-npu {_release(torch_version)} beside torch {torch_version}, or set TURBO_DEVICE."
        yield Finding("torch_npu", "FAIL", "torch_npu is not installed.", remedy)
        return False
    if npu_version is not None:
        if _release(npu_version) != _release(torch_version):
            detail = f"torch_npu {npu_version} does not match torch {torch_version}."
            remedy = f"Install torch=={_release(npu_version)} or torch-npu=={_release(torch_version)}."
            yield Finding("torch_npu", "FAIL", detail, remedy)
            return False
        yield Finding("torch_npu", "OK", f"{npu_version}, beside torch {torch_version}.")
    try:
        from app.pipelines import sdxl_turbo  # noqa: F401, PLC0415 - the import is the check
        from app.pipelines.device import unused_cuda_build  # noqa: PLC0415 - imports torch
    except Exception as error:  # noqa: BLE001 - torch imports torch_npu, which needs CANN
        remedy = "Install the service's extra again." if npu_version is None else "Source CANN's set_env.sh."
        yield Finding("torch", "FAIL", f"torch cannot be imported: {first_line(root_cause(error))}.", remedy)
        return False
    yield Finding("torch", "OK", f"{torch_version}, diffusers {_version_of('diffusers')}.")
    if npu_version is None and (unused := unused_cuda_build()):
        yield Finding("torch", "WARN", *unused)
    return True


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _release(version: str) -> str:
    """Return a version without its suffix: 2.12.0 of 2.12.0.post2 and of 2.12.0+cpu."""
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return match[0] if match else version


def _weights(source: WeightsSource, settings: Settings) -> Findings[Path | None]:
    """Check the model's weights; return their folder or file."""
    place = yield from _located("weights", source, settings, model_layout(settings.scheduler))
    if place.is_file() or settings.scheduler == "turbo":
        yield Finding("scheduler", "OK", "SDXL-Turbo's own.")
        return place
    config = json.loads((place / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    name = config.get("_class_name", "a scheduler without a name")
    yield Finding("scheduler", "OK", f"{name}, {config['timestep_spacing']} timesteps, as SDXL-Turbo requires.")
    return place


def _located(check: str, source: WeightsSource, settings: Settings, layout: Layout) -> Findings[Path]:
    """Check that weights are on this disk and whole; return their folder or file."""
    started = time.monotonic()
    place = locate(source, settings.weights_dir, layout)
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    size_bytes = sum(path.stat().st_size for path in files)
    detail = f"{source.name}: {size_bytes / 1e9:.2f} GB in {place}, verified in {time.monotonic() - started:.1f} s."
    yield Finding(check, "OK", detail)
    return place


def _cann(root: Path) -> Findings[None]:
    version, npu_version = ascend_host.cann_version(os.environ, root), _version_of("torch_npu")
    if version is None:
        remedy = "Install CANN, and source its set_env.sh before the service starts."
        yield Finding("cann", "FAIL", "CANN was not found.", remedy)
    elif npu_version is None or _minor(version) == _CANN_OF_TORCH_NPU.get(_minor(npu_version)):
        yield Finding("cann", "OK", version)
    else:
        pairs = ", ".join(f"torch_npu {theirs} with CANN {cann}" for theirs, cann in _CANN_OF_TORCH_NPU.items())
        yield Finding("cann", "WARN", f"{version}, beside torch_npu {npu_version}.", f"Documented: {pairs}.")


def _driver(root: Path) -> Findings[None]:
    version = ascend_host.driver_version(root)
    if version is None:
        remedy = "Host: install the driver. Container: mount /usr/local/Ascend/driver/version.info (read-only)."
        yield Finding("driver", "WARN", "The driver's version.info is missing.", remedy)
    else:
        yield Finding("driver", "OK", version)


def _npu_smi(number: int) -> Findings[None]:
    """Check the health of all devices; only the device with this number, which would be used, can fail the check."""
    try:
        health_of = {its: (name, health) for its, name, health in ascend_host.npu_smi()}
    except OSError as error:
        remedy = "Check the driver: dmesg, and npu-smi on the host."
        if isinstance(error, FileNotFoundError):
            remedy = "In a container: mount /usr/local/bin/npu-smi and /usr/local/dcmi."
        yield Finding("npu-smi", "WARN", f"{error}.", remedy)
        return
    unwell = {its: f"NPU {its} ({name}) is {health}" for its, (name, health) in health_of.items() if health != "OK"}
    if unwell:
        level: Level = "FAIL" if number in unwell and health_of[number][1] != "Warning" else "WARN"
        remedy = "See `npu-smi info -t health`; reset the device."
        yield Finding("npu-smi", level, f"{', '.join(unwell.values())}.", remedy)
    elif not health_of:
        yield Finding("npu-smi", "WARN", "npu-smi lists no device.", "Check that the driver runs.")
    else:
        names = ", ".join(sorted({name for name, _ in health_of.values()}))
        yield Finding("npu-smi", "OK", f"{len(health_of)} devices, all healthy: {names}.")


def _device_files(number: int, root: Path) -> Findings[None]:
    for path in ascend_host.device_files(number, root):
        if not path.exists():
            remedy = "Load the driver; in a container: pass the file with --device."
            yield Finding("device files", "FAIL", f"{path} is missing.", remedy)
        elif not os.access(path, os.R_OK | os.W_OK):
            remedy = "Run as a member of the group that owns it (docker: --group-add $(stat -c %g /dev/davinci0))."
            yield Finding("device files", "FAIL", f"{path} is not readable and writable by this user.", remedy)
        else:
            yield Finding("device files", "OK", str(path))


def _device(
    settings: Settings,
    place: Path | None,
    vae_folder: Path | None,
    loras: Sequence[LoraFile],
    pictures: Pictures,
) -> Iterator[Finding]:
    """Open the device, check that it computes correctly, and make a picture in each mode."""
    opened = yield from _caught("device", _open(settings))
    if opened is None:
        return
    sound = yield from _caught("canary", _canary(opened))
    if not sound or place is None:
        return
    pipelines = yield from _caught("load", _load(settings, place, vae_folder, loras))
    for mode, pipeline in (pipelines or {}).items():
        (params,) = sample_pictures(mode, parse_sizes(settings.warm_up_sizes)[0], 1)
        yield from _caught(mode, _picture(pipeline, params, pictures))


def _open(settings: Settings) -> Findings[Any]:
    from app.pipelines.device import describe, open_device  # noqa: PLC0415 - imports torch

    opened = open_device(settings.device)
    name, free_bytes, total_bytes = describe(opened)
    memory = f"{name}, {free_bytes / 2**30:.1f} of {total_bytes / 2**30:.1f} GiB free."
    if _wants_npu(settings) and opened.torch_device.type != "npu":
        remedy = "Check the device files above; to use the CPU, set TURBO_DEVICE=cpu."
        yield Finding("device", "FAIL", f"torch_npu finds no NPU, so `auto` uses another device: {memory}", remedy)
    elif free_bytes < _NEEDED_BYTES and opened.torch_device.type != "cpu" and settings.model != "demo":
        remedy = "SDXL-Turbo's weights alone take 7 GB: stop other processes on the device."
        yield Finding("device", "WARN", memory, remedy)
    else:
        yield Finding("device", "OK", memory)
    return opened


def _canary(device: Any) -> Findings[bool]:
    device.check()
    yield Finding("canary", "OK", "The device computes correctly.")
    return True


def _load(
    settings: Settings, place: Path, vae_folder: Path | None, loras: Sequence[LoraFile]
) -> Findings[Mapping[Mode, Any]]:
    started = time.monotonic()
    loaded = load_weights(place, settings, model=settings.model, vae_folder=vae_folder, loras=loras)
    pipelines: Mapping[Mode, Any] = loaded.by_mode  # Any, because number formats and stages are behind the seam
    dtypes = pipelines[Mode.TXT2IMG].dtypes
    took = f"{time.monotonic() - started:.1f} s"
    detail = f"{took}; UNet in {loaded.dtype} ({loaded.dtype_reason}), VAE in {dtypes['vae']}."
    yield Finding("load", "OK", detail)
    for name, reason in loaded.unused_operators.items():
        detail = f"The fused operator {name} is not used: {reason}."
        remedy = "Pictures are right without it, and take longer. Report it if the chip's documentation has it."
        yield Finding("operators", "WARN", detail, remedy)
    if loaded.fused_operators:
        detail = f"These fused operators compute right on this device: {', '.join(loaded.fused_operators)}."
        yield Finding("operators", "OK", detail)
    return pipelines


def _picture(pipeline: Any, params: GenerationParams, pictures: Pictures) -> Findings[None]:
    """Make a picture cold, timed, and with its stages timed, which slows it. A repeated prompt would be cached."""
    times_s = []
    for attempt in range(2):
        started = time.monotonic()
        pipeline([replace(params, prompt=f"{params.prompt} {attempt}")])
        times_s.append(time.monotonic() - started)
    with pipeline.timed_stages() as stages_s:
        (made,) = pipeline([params])
    pictures[params.mode] = params.finish(made.pixels)
    stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in stages_s.items())
    cold_s, warm_s = times_s
    detail = f"{params.width}x{params.height} in {warm_s:.3f} s ({stages}); the first in {cold_s:.2f} s."
    yield Finding(params.mode, "OK", detail)
