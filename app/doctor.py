"""The doctor: looks at everything that serving needs, and says of each what is wrong and what helps."""

import importlib.metadata
import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image

from app.errors import DeviceLostError, TurboError
from app.pipelines import ascend_host
from app.pipelines.base import GenerationParams, Img2ImgParams, Mode, Txt2ImgParams
from app.settings import Settings, parse_sizes, unknown_variables
from app.weights.source import FakeSource, WeightsSource, parse_source
from app.weights.store import locate

T = TypeVar("T")
Level = Literal["OK", "WARN", "FAIL"]

_PYTHONS = ((3, 11), (3, 13))
_CANN_OF_TORCH_NPU = {"2.12": "9.1", "2.11": "9.1", "2.10": "9.1"}
"""The pairs that COMPATIBILITY.md of Ascend/pytorch names, as far as they matter here."""

_NEEDED_BYTES = 12 << 30
"""Device memory that SDXL-Turbo's fp16 weights (7 GB, from their files' sizes) need with a picture's tensors."""

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


def report(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print the findings as they come, or as JSON in the end, and return the exit code: 1 if one failed."""
    levels: list[Level] = []
    shown: list[dict[str, Any]] = []
    for finding in findings:
        levels.append(finding.level)
        shown.append(asdict(finding))
        if not as_json:
            print(finding, flush=True)  # noqa: T201 - the report
    if as_json:
        print(json.dumps({"healthy": "FAIL" not in levels, "findings": shown}, indent=1))  # noqa: T201 - the report
    else:
        print(f"{levels.count('FAIL')} failed, {levels.count('WARN')} to look at")  # noqa: T201 - the report
    return int("FAIL" in levels)


def examine(settings: Settings, *, root: Path = Path("/")) -> Iterator[Finding]:
    """Look at everything, in an order in which the first that fails is the one to mend first.

    What needs something that has failed is left out. Blocks; opens the device on the calling thread.

    Args:
        settings: What would be served, and how.
        root: Where the host's files are.
    """
    yield _python()
    yield from _variables()
    yield _port(settings)
    try:
        source = parse_source(settings.model)
    except TurboError as error:
        yield Finding("model", "FAIL", str(error))
        return
    if isinstance(source, FakeSource):
        yield Finding("model", "WARN", "The fake makes no real pictures and needs no device.", "Set TURBO_MODEL.")
        return
    runs = yield from _packages(settings)
    folder = yield from _weights(source, settings)
    if _wants_npu(settings):
        yield from _host(settings, root)
    if runs:
        yield from _device(settings, folder)


def _python() -> Finding:
    lowest, highest = _PYTHONS
    found = sys.version_info[:2]
    if lowest <= found <= highest:
        return Finding("python", "OK", platform.python_version())
    return Finding("python", "FAIL", platform.python_version(), "Install Python 3.11, 3.12 or 3.13.")


def _variables() -> Iterator[Finding]:
    for name, nearest in unknown_variables(os.environ):
        yield Finding("settings", "WARN", f"{name} is no setting.", f"Did you mean {nearest}?" if nearest else "")


def _port(settings: Settings) -> Finding:
    where = f"{settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
            listener.bind((settings.host, settings.port))
    except OSError as error:
        return Finding(
            "port", "FAIL", f"{where}: {error.strerror or error}.", "Set TURBO_PORT, or stop what listens there."
        )
    return Finding("port", "OK", f"{where} is free.")


def _wants_npu(settings: Settings) -> bool:
    return settings.device.startswith("npu") or (settings.device == "auto" and _version_of("torch_npu") is not None)


def _packages(settings: Settings) -> Generator[Finding, None, bool]:
    """Look at torch and torch_npu; return whether they can be used."""
    torch_version, npu_version = _version_of("torch"), _version_of("torch_npu")
    if torch_version is None:
        yield Finding("torch", "FAIL", "torch is not installed.", "Install the service's extra: cpu, cuda or npu.")
        return False
    if npu_version is None and _wants_npu(settings):
        yield Finding(
            "torch_npu",
            "FAIL",
            "torch_npu is not installed.",
            f"Install torch-npu {_minor(torch_version)}.* beside torch {torch_version}, or set TURBO_DEVICE.",
        )
        return False
    if npu_version is not None:
        if _minor(npu_version) != _minor(torch_version):
            yield Finding(
                "torch_npu",
                "FAIL",
                f"torch_npu {npu_version} does not go with torch {torch_version}.",
                f"Install torch=={_minor(npu_version)}.* or torch-npu=={_minor(torch_version)}.*.",
            )
            return False
        yield Finding("torch_npu", "OK", f"{npu_version}, beside torch {torch_version}.")
    try:
        from app.pipelines import sdxl_turbo  # noqa: F401, PLC0415 - the import is the check
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding("torch", "FAIL", f"It cannot be imported: {_first_line(error)}.", "Source CANN's set_env.sh.")
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


def _weights(source: WeightsSource, settings: Settings) -> Generator[Finding, None, Path | None]:
    """Look at the weights; return their folder if they can be used."""
    started = time.monotonic()
    try:
        folder = locate(source, settings.weights_dir)
    except TurboError as error:
        yield Finding("weights", "FAIL", str(error))
        return None
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield Finding(
        "weights",
        "OK",
        f"{source.name}: {size_bytes / 1e9:.2f} GB in {folder}, verified in {time.monotonic() - started:.1f} s.",
    )
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    yield Finding(
        "scheduler", "OK", f"{config['_class_name']}, {config['timestep_spacing']} timesteps, as SDXL-Turbo needs them."
    )
    return folder


def _host(settings: Settings, root: Path) -> Iterator[Finding]:
    """Look at what the host brings for an NPU."""
    yield _cann(root)
    driver = ascend_host.driver_version(root)
    if driver is None:
        yield Finding(
            "driver",
            "WARN",
            "The driver's version.info is not there.",
            "On a host: install the driver. In a container: mount /usr/local/Ascend/driver/version.info (read-only).",
        )
    else:
        yield Finding("driver", "OK", driver)
    yield _npu_smi()
    yield from _device_files(settings, root)


def _cann(root: Path) -> Finding:
    version, npu_version = ascend_host.cann_version(os.environ, root), _version_of("torch_npu")
    if version is None:
        return Finding(
            "cann", "FAIL", "CANN is not found.", "Install it, and source its set_env.sh before the service starts."
        )
    expected = _CANN_OF_TORCH_NPU.get(_minor(npu_version)) if npu_version else None
    if expected is None:
        return Finding("cann", "WARN", f"{version}; with torch_npu {npu_version} it is not a documented pair.")
    if _minor(version) != expected:
        return Finding(
            "cann", "WARN", f"{version}; torch_npu {npu_version} is documented with {expected}.", "Install that pair."
        )
    return Finding("cann", "OK", version)


def _npu_smi() -> Finding:
    try:
        devices = list(ascend_host.npu_smi())
    except OSError as error:
        return Finding(
            "npu-smi", "WARN", f"{error}.", "In a container: mount /usr/local/bin/npu-smi and /usr/local/dcmi."
        )
    if unwell := [f"{name} is {health}" for name, health in devices if health != "OK"]:
        return Finding(
            "npu-smi", "FAIL", f"{', '.join(unwell)}.", "Look at `npu-smi info -t health`; reset the device."
        )
    if not devices:
        return Finding("npu-smi", "WARN", "It lists no device.", "Check that the driver runs.")
    return Finding("npu-smi", "OK", f"{len(devices)} devices, all well: {devices[0][0]}.")


def _device_files(settings: Settings, root: Path) -> Iterator[Finding]:
    _, _, index = settings.device.partition(":")
    for file in ascend_host.device_files(os.environ, int(index or 0), root):
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
    from app.pipelines.device import describe, open_device  # noqa: PLC0415 - imports torch

    opened = yield from _tried("device", lambda: open_device(settings.device))
    if opened is None:
        return
    name, free_bytes, total_bytes = describe(opened)
    memory = f"{name}, {free_bytes / 2**30:.1f} of {total_bytes / 2**30:.1f} GiB free."
    short = free_bytes < _NEEDED_BYTES and settings.model != "demo"
    remedy = "SDXL-Turbo needs about 12 GiB: end what else uses the device." if short else ""
    yield Finding("device", "WARN" if short else "OK", memory, remedy)

    def check() -> Finding:
        opened.check()
        return Finding("canary", "OK", "The device computes what it should.")

    canary = yield from _tried("canary", check)
    if canary is not None:
        yield canary
        if folder is not None:
            yield from _pictures(settings, folder)


def _tried(check: str, call: Callable[[], T]) -> Generator[Finding, None, T | None]:
    """Return what the call returns, or None after a finding that says how it failed."""
    try:
        return call()
    except DeviceLostError as error:
        yield Finding(check, "FAIL", _public(error), error.remedy)
    except TurboError as error:
        yield Finding(check, "FAIL", str(error))
    except Exception as error:  # noqa: BLE001 - the edge: whatever it is, the operator is told
        yield Finding(check, "FAIL", f"{type(error).__name__}: {_first_line(error)}.")
    return None


def _public(error: DeviceLostError) -> str:
    return re.sub(r"; the service is being replaced\.$", ".", str(error))


def _pictures(settings: Settings, folder: Path) -> Iterator[Finding]:
    from app.pipelines.sdxl_turbo import load_sdxl_turbo  # noqa: PLC0415 - imports torch

    started = time.monotonic()
    loaded = yield from _tried(
        "load",
        lambda: load_sdxl_turbo(
            folder,
            model=settings.model,
            device_name=settings.device,
            dtype_name=settings.dtype,
            vae_dtype_name=settings.vae_dtype,
            attention=settings.attention,
            npu_graphs=settings.npu_graphs,
        ),
    )
    if loaded is None:
        return
    pipelines: Mapping[Mode, Any] = loaded.by_mode  # the doctor looks behind the seam
    dtypes = pipelines[Mode.TXT2IMG].dtypes
    yield Finding(
        "load", "OK", f"{time.monotonic() - started:.1f} s; UNet in {dtypes['unet']}, VAE in {dtypes['vae']} for good."
    )
    width, height = parse_sizes(settings.warm_up_sizes)[0]
    for params in _questions(width, height):
        yield from _picture(pipelines[params.mode], params)


def _questions(width: int, height: int) -> tuple[GenerationParams, ...]:
    prompt = "a red circle on a blue background"
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    return (
        Txt2ImgParams(prompt=prompt, seed=0, num_inference_steps=1, width=width, height=height),
        Img2ImgParams(prompt=prompt, seed=0, num_inference_steps=2, strength=0.5, image=image),
    )


def _picture(pipeline: Any, params: GenerationParams) -> Iterator[Finding]:
    """Make the same picture three times: cold, timed, and with its stages timed, which slows it."""
    times_s = []
    for _ in range(2):
        started = time.monotonic()
        if (yield from _tried(params.mode, lambda: pipeline([params]))) is None:
            return
        times_s.append(time.monotonic() - started)
    with pipeline.timed_stages() as stages_s:
        if (yield from _tried(params.mode, lambda: pipeline([params]))) is None:
            return
    stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in stages_s.items())
    cold_s, warm_s = times_s
    yield Finding(
        params.mode, "OK", f"{params.width}x{params.height} in {warm_s:.3f} s ({stages}); the first in {cold_s:.2f} s."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
