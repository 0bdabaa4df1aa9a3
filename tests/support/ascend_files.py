"""The files of a host with an NPU, laid out in a test's folder."""

from pathlib import Path

NPU_SMI = """#!/bin/sh
cat <<'END'
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.0                   Version: 24.1.0                                                |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B4               | HEALTH        | 85.1        40                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          2859 / 32768         |
+===========================+===============+====================================================+
END
"""


def lay_out(root: Path, *, cann: str = "9.1.0", devices: int = 1) -> None:
    """Write the files of CANN, the driver and the devices."""
    toolkit = root / "usr/local/Ascend/cann/aarch64-linux/ascend_toolkit_install.info"
    toolkit.parent.mkdir(parents=True)
    toolkit.write_text(f"package_name=Ascend-cann-toolkit\nversion={cann}\ninnerversion=V100\n")
    driver = root / "usr/local/Ascend/driver/version.info"
    driver.parent.mkdir(parents=True)
    driver.write_text("Version=25.0.rc1\nascendhal_version=7.35.23\n")
    (root / "dev").mkdir()
    for name in ("davinci_manager", "devmm_svm", "hisi_hdc", *(f"davinci{number}" for number in range(devices))):
        (root / "dev" / name).touch()


def put_npu_smi(folder: Path, script: str = NPU_SMI.replace("HEALTH", "OK    ")) -> None:
    """Write an npu-smi into a folder that the test adds to PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / "npu-smi"
    path.write_text(script)
    path.chmod(0o755)
