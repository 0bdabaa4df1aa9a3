"""A host's software for an NPU: CANN, the driver, npu-smi and the device files. Needs no torch.

Source of the paths: the installation guides of CANN (instg_0064 at hiascend.com) and of Ascend/mind-cluster.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

_TOOLKITS = ("usr/local/Ascend/cann", "usr/local/Ascend/ascend-toolkit/latest")
_DRIVER = "usr/local/Ascend/driver/version.info"
_SHARED_DEVICES = ("davinci_manager", "devmm_svm", "hisi_hdc")
_NPU_SMI_TIMEOUT_S = 20


def cann_version(environ: Mapping[str, str], root: Path = Path("/")) -> str | None:
    """Return the version of CANN's toolkit in ASCEND_HOME_PATH or in a default folder, or None."""
    homes = [Path(environ["ASCEND_HOME_PATH"])] if environ.get("ASCEND_HOME_PATH") else []
    homes += [root / toolkit for toolkit in _TOOLKITS]
    paths = (path for home in homes for path in sorted(home.glob("*-linux/ascend_toolkit_install.info")))
    return next(filter(None, (_value_in(path, "version") for path in paths)), None)


def driver_version(root: Path = Path("/")) -> str | None:
    """Return the driver's version, or None if its file is missing: it may not be mounted into a container."""
    return _value_in(root / _DRIVER, "Version")


def _value_in(path: Path, key: str) -> str | None:
    """Return the value of a `key=value` line."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(rf"^{key}=(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def device_number(environ: Mapping[str, str], index: int, root: Path = Path("/")) -> int:
    """Return the number N in /dev/davinciN of the device `npu:index`.

    CANN counts the existing devices from 0, and ASCEND_RT_VISIBLE_DEVICES selects from that count. A container has some
    of the host's devices, with the host's numbers.
    """
    visible = re.findall(r"[0-9]{1,4}", environ.get("ASCEND_RT_VISIBLE_DEVICES", ""))
    position = int(visible[index]) if index < len(visible) else index
    names = (path.name.removeprefix("davinci") for path in (root / "dev").glob("davinci*"))
    numbers = sorted(int(name) for name in names if re.fullmatch(r"[0-9]{1,4}", name))
    return numbers[position] if position < len(numbers) else position


def device_files(number: int, root: Path = Path("/")) -> list[Path]:
    """Return the files that CANN reads and writes for the NPU /dev/davinciN."""
    return [root / "dev" / name for name in (f"davinci{number}", *_SHARED_DEVICES)]


def npu_smi() -> Iterator[tuple[int, str, str]]:
    """Ask npu-smi for each device's number, name and health (OK, Warning, Alarm, Critical or UNKNOWN).

    Raises:
        FileNotFoundError: npu-smi is not in PATH.
        TimeoutError: npu-smi does not answer.
        OSError: npu-smi fails; the text says how.
    """
    if shutil.which("npu-smi") is None:
        raise FileNotFoundError("npu-smi is not in PATH")
    try:
        done = subprocess.run(
            ["npu-smi", "info"],  # noqa: S607 - its folder depends on the driver
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_NPU_SMI_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"npu-smi did not answer within {_NPU_SMI_TIMEOUT_S} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(f"npu-smi failed: {lines[0] if lines else f'exit code {done.returncode}'}")
    # | 0     910B3               | OK            | 101.8       43                0    / 0             |
    for match in re.finditer(r"^\|\s*(\d+)\s+(\w*\d\w*)\s*\|\s*([A-Za-z]+)\s*\|", done.stdout, re.MULTILINE):
        yield int(match[1]), match[2], match[3]
