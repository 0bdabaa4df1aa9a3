"""The doctor: looks at everything that serving needs, and says of each what is wrong and what helps."""

import importlib.metadata
import json
import os
import platform
import queue
import re
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from app.cli.stdout import own_stdout
from app.errors import AddressError, DeviceLostError, TurboError, first_line, root_cause
from app.inference.registry import LOAD_LIMITS
from app.inference.samples import sample_pictures
from app.main import key_names, load_folder
from app.pipelines.base import GenerationParams, Mode
from app.pipelines.npu import host as ascend_host
from app.server.address import check_address
from app.settings import Settings, parse_sizes, unknown_variables
from app.weights.source import FakeSource, WeightsSource, parse_source
from app.weights.store import locate

T = TypeVar("T")
Level = Literal["OK", "WARN", "FAIL"]

_PYTHONS = ((3, 11), (3, 13))
_CANN_OF_TORCH_NPU = {"2.12": "9.1"}
"""The pairs that COMPATIBILITY.md of Ascend/pytorch names, of the versions of torch that the service takes."""

_NEEDED_BYTES = 8 << 30
"""Device memory below which it is short: SDXL-Turbo's fp16 weights are 7 GB, and a picture's tensors come on top."""

_LIMITS_TO_COMPILE, _LIMITS = 20, 3
"""How many hang limits a finding of three pictures may take: where the first one compiles, and where it does not."""

_OUT_OF_GROUP = "Run as a member of the group that owns it (docker: --group-add $(stat -c %g /dev/davinci0))."


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    level: Level
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:<5} {self.check:<14} {' '.join([self.detail, self.remedy]).strip()}"


Findings = Generator[Finding, None, T]
"""Findings as they come, and in the end a value for the checks that follow."""


def report(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print the findings as they come, or as JSON in the end, and return the exit code: 1 if one failed.

    Stdout is the report's alone.
    """
    levels: list[Level] = []
    shown: list[dict[str, Any]] = []
    with own_stdout() as stdout, suppress(BrokenPipeError):  # `doctor | head` has read enough
        for finding in findings:
            levels.append(finding.level)
            shown.append(asdict(finding))
            if not as_json:
                print(finding, file=stdout, flush=True)
        if as_json:
            print(json.dumps({"healthy": "FAIL" not in levels, "findings": shown}, indent=1), file=stdout, flush=True)
        else:
            print(f"{levels.count('FAIL')} failed, {levels.count('WARN')} to look at", file=stdout, flush=True)
    return int("FAIL" in levels)


def examine(settings: Settings, *, root: Path = Path("/")) -> Iterator[Finding]:
    """Look at everything, in an order in which the first that fails is the one to mend first.

    What needs something that has failed is left out, and whatever is raised becomes a finding. Blocks; the device is
    opened on a thread of its own, which is left behind if the device hangs.

    Args:
        settings: What would be served, and how.
        root: Where the host's files are.
    """
    yield _python()
    yield from _variables()
    yield from _caught("port", _port(settings))
    yield from _caught("doors", _doors(settings))
    try:
        source = parse_source(settings.model)
    except TurboError as error:
        yield Finding("model", "FAIL", str(error))
        return
    if isinstance(source, FakeSource):
        yield Finding("model", "WARN", "The fake makes no real pictures and needs no device.", "Set TURBO_MODEL.")
        return
    runs = yield from _caught("torch", _packages(settings))
    folder = yield from _caught("weights", _weights(source, settings))
    if _wants_npu(settings):
        yield from _host(settings, root)
    if runs:
        compiles = settings.compile == "on" or settings.npu_graphs
        yield from _unless_hung(
            _device(settings, folder), settings.hang_limit_s, limits=_LIMITS_TO_COMPILE if compiles else _LIMITS
        )


def _caught(check: str, findings: Generator[Finding, None, T]) -> Generator[Finding, None, T | None]:
    """Pass on findings and what they return; what they raise instead becomes a finding, and None is returned."""
    try:
        return (yield from findings)
    except DeviceLostError as error:
        yield Finding(check, "FAIL", error.what_failed, error.remedy)
    except TurboError as error:
        yield Finding(check, "FAIL", str(error))
    except Exception as error:  # noqa: BLE001 - the edge: whatever it is, the operator is told
        yield Finding(check, "FAIL", f"{type(error).__name__}: {first_line(error)}.")
    return None


def _unless_hung(findings: Iterable[Finding], hang_limit_s: float, *, limits: int) -> Iterator[Finding]:
    """Pass on findings from a thread that makes them, and give up on it after so many limits without one."""
    last = ""
    made: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def make() -> None:
        for finding in findings:
            made.put(finding)
        made.put(None)

    threading.Thread(target=make, name="doctor", daemon=True).start()
    while True:
        limit_s = hang_limit_s * (max(limits, LOAD_LIMITS) if last == "canary" else limits)
        try:
            finding = made.get(timeout=limit_s)
        except queue.Empty:
            yield Finding(
                "device",
                "FAIL",
                f"It has not answered for {limit_s:g} s.",
                "If it may still be loading or compiling, set TURBO_HANG_LIMIT_S higher; else reset the device.",
            )
            return
        if finding is None:
            return
        last = finding.check
        yield finding


def _python() -> Finding:
    lowest, highest = _PYTHONS
    found = sys.version_info[:2]
    if lowest <= found <= highest:
        return Finding("python", "OK", platform.python_version())
    return Finding("python", "FAIL", platform.python_version(), "Install Python 3.11, 3.12 or 3.13.")


def _variables() -> Iterator[Finding]:
    for name, nearest in unknown_variables(os.environ):
        yield Finding("settings", "WARN", f"{name} is no setting.", f"Did you mean {nearest}?" if nearest else "")


def _port(settings: Settings) -> Findings[None]:
    try:
        check_address(settings.host, settings.port)
    except AddressError as error:
        yield Finding("port", "FAIL", error.detail, error.remedy)
    else:
        yield Finding("port", "OK", f"{settings.host}:{settings.port} is free.")


def _doors(settings: Settings) -> Findings[None]:
    """Say who may ask."""
    if settings.api_keys_file is not None:
        yield Finding("doors", "OK", f"API keys of {', '.join(key_names(settings))}.")
    elif settings.host not in ("127.0.0.1", "::1", "localhost"):
        remedy = "Set TURBO_API_KEYS_FILE, unless a proxy or the network decides who reaches it."
        yield Finding("doors", "WARN", f"Whoever reaches {settings.host}:{settings.port} may ask for pictures.", remedy)


def _wants_npu(settings: Settings) -> bool:
    return settings.device.startswith("npu") or (settings.device == "auto" and _version_of("torch_npu") is not None)


def _packages(settings: Settings) -> Findings[bool]:
    """Look at torch and torch_npu; return whether they can be used."""
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
            yield Finding(
                "torch_npu",
                "FAIL",
                f"torch_npu {npu_version} does not go with torch {torch_version}.",
                f"Install torch=={_release(npu_version)} or torch-npu=={_release(torch_version)}.",
            )
            return False
        yield Finding("torch_npu", "OK", f"{npu_version}, beside torch {torch_version}.")
    try:
        from app.pipelines import sdxl_turbo  # noqa: F401, PLC0415 - the import is the check
    except Exception as error:  # noqa: BLE001 - torch imports torch_npu, which needs CANN
        remedy = "Install the service's extra again." if npu_version is None else "Source CANN's set_env.sh."
        yield Finding("torch", "FAIL", f"It cannot be imported: {first_line(root_cause(error))}.", remedy)
        return False
    yield Finding("torch", "OK", f"{torch_version}, diffusers {_version_of('diffusers')}.")
    return True


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _release(version: str) -> str:
    """Return a version without what follows the numbers, as in 2.12.0.post2 and 2.12.0+cpu."""
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return match[0] if match else version


def _weights(source: WeightsSource, settings: Settings) -> Findings[Path | None]:
    """Look at the weights; return their folder if they can be used."""
    started = time.monotonic()
    folder = locate(source, settings.weights_dir)
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield Finding(
        "weights",
        "OK",
        f"{source.name}: {size_bytes / 1e9:.2f} GB in {folder}, verified in {time.monotonic() - started:.1f} s.",
    )
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    name = config.get("_class_name", "a scheduler without a name")
    yield Finding("scheduler", "OK", f"{name}, {config['timestep_spacing']} timesteps, as SDXL-Turbo needs them.")
    return folder


def _host(settings: Settings, root: Path) -> Iterator[Finding]:
    """Look at what the host brings for an NPU."""
    _, _, index = settings.device.partition(":")
    number = ascend_host.device_number(os.environ, int(index or 0), root)
    for check, findings in {
        "cann": _cann(root),
        "driver": _driver(root),
        "npu-smi": _npu_smi(number),
        "device files": _device_files(number, root),
    }.items():
        yield from _caught(check, findings)


def _cann(root: Path) -> Findings[None]:
    version, npu_version = ascend_host.cann_version(os.environ, root), _version_of("torch_npu")
    if version is None:
        remedy = "Install it, and source its set_env.sh before the service starts."
        yield Finding("cann", "FAIL", "CANN is not found.", remedy)
    elif npu_version is None or _minor(version) == _CANN_OF_TORCH_NPU.get(_minor(npu_version)):
        yield Finding("cann", "OK", version)
    else:
        pairs = ", ".join(f"torch_npu {theirs} with CANN {cann}" for theirs, cann in _CANN_OF_TORCH_NPU.items())
        yield Finding("cann", "WARN", f"{version}, beside torch_npu {npu_version}.", f"Documented: {pairs}.")


def _driver(root: Path) -> Findings[None]:
    version = ascend_host.driver_version(root)
    if version is None:
        remedy = (
            "On a host: install the driver. In a container: mount /usr/local/Ascend/driver/version.info (read-only)."
        )
        yield Finding("driver", "WARN", "The driver's version.info is not there.", remedy)
    else:
        yield Finding("driver", "OK", version)


def _npu_smi(number: int) -> Findings[None]:
    """Look at the health of all devices; that of the one with this number, which would be used, decides."""
    try:
        health_of = {its: (name, health) for its, name, health in ascend_host.npu_smi()}
    except FileNotFoundError as error:
        remedy = "In a container: mount /usr/local/bin/npu-smi and /usr/local/dcmi."
        yield Finding("npu-smi", "WARN", f"{error}.", remedy)
        return
    except OSError as error:
        yield Finding("npu-smi", "WARN", f"{error}.", "Look at the driver: dmesg, and npu-smi on the host.")
        return
    unwell = {its: f"NPU {its} ({name}) is {health}" for its, (name, health) in health_of.items() if health != "OK"}
    if unwell:
        level: Level = "FAIL" if number in unwell and health_of[number][1] != "Warning" else "WARN"
        remedy = "Look at `npu-smi info -t health`; reset the device."
        yield Finding("npu-smi", level, f"{', '.join(unwell.values())}.", remedy)
    elif not health_of:
        yield Finding("npu-smi", "WARN", "It lists no device.", "Check that the driver runs.")
    else:
        names = ", ".join(sorted({name for name, _ in health_of.values()}))
        yield Finding("npu-smi", "OK", f"{len(health_of)} devices, all well: {names}.")


def _device_files(number: int, root: Path) -> Findings[None]:
    for file in ascend_host.device_files(number, root):
        if not file.exists:
            yield Finding(
                "device files", "FAIL", f"{file.path} is not there.", "Load the driver; in a container: --device it."
            )
        elif not file.usable:
            yield Finding("device files", "FAIL", f"{file.path} is closed to this user.", _OUT_OF_GROUP)
        else:
            yield Finding("device files", "OK", f"{file.path}")


def _device(settings: Settings, folder: Path | None) -> Iterator[Finding]:
    """Open the device, have it prove itself, and make a picture in each mode."""
    opened = yield from _caught("device", _open(settings))
    if opened is None:
        return
    sound = yield from _caught("canary", _canary(opened))
    if sound and folder is not None:
        pipelines = yield from _caught("load", _load(settings, folder))
        if pipelines is not None:
            size = parse_sizes(settings.warm_up_sizes)[0]
            for mode in Mode:
                (params,) = sample_pictures(mode, size, 1)
                yield from _caught(mode, _picture(pipelines[mode], params))


def _open(settings: Settings) -> Findings[Any]:
    from app.pipelines.device import describe, open_device  # noqa: PLC0415 - imports torch

    opened = open_device(settings.device)
    name, free_bytes, total_bytes = describe(opened)
    memory = f"{name}, {free_bytes / 2**30:.1f} of {total_bytes / 2**30:.1f} GiB free."
    if _wants_npu(settings) and opened.torch_device.type != "npu":
        remedy = "Check the device files above; set TURBO_DEVICE=cpu if you want the CPU."
        yield Finding("device", "FAIL", f"torch_npu sees no NPU, so `auto` takes another: {memory}", remedy)
    elif free_bytes < _NEEDED_BYTES and settings.model != "demo":
        remedy = "SDXL-Turbo's weights alone take 7 GB: end what else uses the device."
        yield Finding("device", "WARN", memory, remedy)
    else:
        yield Finding("device", "OK", memory)
    return opened


def _canary(device: Any) -> Findings[bool]:
    device.check()
    yield Finding("canary", "OK", "The device computes what it should.")
    return True


def _load(settings: Settings, folder: Path) -> Findings[Mapping[Mode, Any]]:
    started = time.monotonic()
    loaded = load_folder(folder, settings, model=settings.model)
    pipelines: Mapping[Mode, Any] = loaded.by_mode  # the doctor looks behind the seam
    dtypes = pipelines[Mode.TXT2IMG].dtypes
    yield Finding(
        "load", "OK", f"{time.monotonic() - started:.1f} s; UNet in {dtypes['unet']}, VAE in {dtypes['vae']} for good."
    )
    return pipelines


def _picture(pipeline: Any, params: GenerationParams) -> Findings[None]:
    """Make a picture three times: cold, timed, and with its stages timed, which slows it. Each prompt is a new one."""
    times_s = []
    for attempt in range(2):
        started = time.monotonic()
        pipeline([replace(params, prompt=f"{params.prompt} {attempt}")])
        times_s.append(time.monotonic() - started)
    with pipeline.timed_stages() as stages_s:
        pipeline([params])
    stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in stages_s.items())
    cold_s, warm_s = times_s
    yield Finding(
        params.mode, "OK", f"{params.width}x{params.height} in {warm_s:.3f} s ({stages}); the first in {cold_s:.2f} s."
    )
