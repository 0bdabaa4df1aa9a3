"""The doctor on the simulated NPU, without faults and with each fault."""

import gc
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.cli import doctor
from app.cli.doctor import Finding, examine
from app.settings import Settings
from tests.npu.simulator import Npu
from tests.support.ascend_files import NPU_SMI, lay_out, put_npu_smi

Examine = Callable[..., dict[str, Finding]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lay_out(tmp_path)
    return tmp_path


@pytest.fixture
def findings(root: Path, npu: Npu, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Examine a host that has only the test's faults, up to the check `before`, and return findings by check.

    If a check has several findings, a FAIL counts, else the last one.
    """
    monkeypatch.setitem(doctor._CANN_OF_TORCH_NPU, npu.version.rpartition(".")[0], "9.1")  # torch is newer than CANN
    monkeypatch.setenv("PATH", f"{root / 'bin'}:/usr/bin:/bin")
    put_npu_smi(root / "bin")

    def run(before: str = "", **settings: object) -> dict[str, Finding]:
        all_settings = {"device": "npu", "port": 0, "dtype": "fp32", "warm_up_sizes": "64x64", **settings}
        found: dict[str, Finding] = {}
        for finding in examine(Settings.model_validate(all_settings), root=root):
            if finding.check == before:
                break
            if finding.check not in found or found[finding.check].level != "FAIL":
                found[finding.check] = finding
        return found

    return run


def failed(found: dict[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if finding.level == "FAIL"]


def test_a_sound_npu_is_found_sound(findings: Examine) -> None:
    found = findings()
    assert {name: finding.level for name, finding in found.items()} == dict.fromkeys(
        [
            "python",
            "port",
            "torch_npu",
            "torch",
            "weights",
            "scheduler",
            "cann",
            "driver",
            "npu-smi",
            "device files",
            "device",
            "canary",
            "load",
            "operators",
            "txt2img",
            "img2img",
            "inpaint",
        ],
        "OK",
    )
    assert found["cann"].detail == "9.1.0"
    assert found["driver"].detail == "25.0.rc1"
    assert found["npu-smi"].detail == "1 devices, all healthy: 910B4."
    assert "Ascend910B4 (npu:0, of 1 visible)" in found["device"].detail
    assert re.search(r"text \d+\.\d{3}, unet \d+\.\d{3}, vae decode \d+\.\d{3}", found["txt2img"].detail)


def test_versions_that_do_not_go_together_fail_before_anything_is_imported(findings: Examine, npu: Npu) -> None:
    torch_release = npu.version
    npu.version = "2.11.0.post1"
    found = findings()
    assert failed(found) == ["torch_npu"]
    assert found["torch_npu"].remedy == f"Install torch==2.11.0 or torch-npu=={torch_release}."
    assert "canary" not in found


def test_a_cann_of_another_pair_is_to_be_looked_at(findings: Examine, root: Path) -> None:
    info = next(root.rglob("ascend_toolkit_install.info"))
    info.write_text("version=8.2.RC1\n")
    finding = findings(before="driver")["cann"]
    assert finding.level == "WARN"
    assert "8.2.RC1" in finding.detail
    assert "with CANN 9.1" in finding.remedy


def test_a_host_without_cann_fails_with_what_to_source(findings: Examine, root: Path) -> None:
    next(root.rglob("ascend_toolkit_install.info")).unlink()
    found = findings(before="device files")
    assert failed(found) == ["cann"]
    assert "set_env.sh" in found["cann"].remedy


def test_a_driver_that_is_not_mounted_is_to_be_looked_at(findings: Examine, root: Path) -> None:
    (root / "usr/local/Ascend/driver/version.info").unlink()
    finding = findings(before="npu-smi")["driver"]
    assert finding.level == "WARN"
    assert "mount /usr/local/Ascend/driver/version.info" in finding.remedy


def test_an_npu_smi_that_is_missing_is_to_be_looked_at(
    findings: Examine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "bin" / "npu-smi").unlink()
    monkeypatch.setenv("PATH", str(root / "bin"))
    remedy = "In a container: mount /usr/local/bin/npu-smi and /usr/local/dcmi."
    found = findings(before="device files")
    assert found["npu-smi"] == Finding("npu-smi", "WARN", "npu-smi is not in PATH.", remedy)
    assert failed(found) == []


@pytest.mark.parametrize(
    ("script", "detail", "remedy"),
    [
        (
            "echo 'dcmi module initialize failed. ret is -8005' >&2; exit 255",
            "npu-smi failed: dcmi module initialize failed. ret is -8005.",
            "Check the driver: dmesg, and npu-smi on the host.",
        ),
        ("exit 0", "npu-smi lists no device.", "Check that the driver runs."),
    ],
)
def test_an_npu_smi_that_fails_or_lists_no_device_is_to_be_looked_at(
    findings: Examine, root: Path, script: str, detail: str, remedy: str
) -> None:
    put_npu_smi(root / "bin", f"#!/bin/sh\n{script}\n")
    found = findings(before="device files")
    assert found["npu-smi"] == Finding("npu-smi", "WARN", detail, remedy)
    assert failed(found) == []


def test_a_device_that_npu_smi_calls_ill_fails(findings: Examine, root: Path) -> None:
    put_npu_smi(root / "bin", NPU_SMI.replace("HEALTH", "Alarm "))
    finding = findings(before="device files")["npu-smi"]
    assert (finding.level, finding.detail) == ("FAIL", "NPU 0 (910B4) is Alarm.")


def test_a_warning_or_another_device_s_alarm_is_to_be_looked_at(findings: Examine, root: Path) -> None:
    put_npu_smi(root / "bin", NPU_SMI.replace("HEALTH ", "Warning"))
    assert findings(before="device files")["npu-smi"].level == "WARN"
    put_npu_smi(root / "bin", NPU_SMI.replace("HEALTH", "Alarm ").replace("| 0     910B4", "| 7     910B4"))
    finding = findings(before="device files")["npu-smi"]
    assert (finding.level, finding.detail) == ("WARN", "NPU 7 (910B4) is Alarm.")


def test_a_device_file_that_is_not_there_fails_and_is_named(findings: Examine, root: Path) -> None:
    (root / "dev" / "davinci0").unlink()
    found = findings()
    assert failed(found) == ["device files"]
    finding = found["device files"]
    assert str(root / "dev" / "davinci0") in finding.detail
    assert "--device" in finding.remedy


def test_no_visible_npu_fails(findings: Examine, npu: Npu) -> None:
    npu.count = 0
    found = findings()
    assert failed(found) == ["device"]
    assert "0 visible npu devices" in found["device"].detail
    assert "canary" not in found


def test_auto_does_not_fall_back_to_the_cpu_in_silence_where_torch_npu_is_installed(
    findings: Examine, npu: Npu
) -> None:
    npu.count = 0
    found = findings(device="auto")
    assert failed(found) == ["device"]
    assert "uses another device: CPU" in found["device"].detail
    assert "TURBO_DEVICE=cpu" in found["device"].remedy


def test_a_device_that_does_not_say_what_it_has_fails(
    findings: Examine, npu: Npu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mem_get_info(*_: object) -> tuple[int, int]:
        raise RuntimeError("rtMemGetInfoEx, error code is 507899")

    monkeypatch.setattr(torch.npu, "mem_get_info", mem_get_info)  # type: ignore[attr-defined]
    del npu
    found = findings()
    assert failed(found) == ["device"]
    assert "507899" in found["device"].detail


def test_a_device_that_hangs_is_given_up(findings: Examine, npu: Npu) -> None:
    npu.hang = threading.Event()
    found = findings(hang_limit_s=0.2)
    assert failed(found) == ["device"]
    assert "has not answered for 0.6 s" in found["device"].detail
    left_behind = next(thread for thread in threading.enumerate() if thread.name.startswith("doctor"))
    npu.error = RuntimeError("the thread that was left behind ends here")
    npu.hang.set()
    left_behind.join(timeout=60)
    assert not left_behind.is_alive()


def test_little_memory_is_to_be_looked_at_where_sdxl_turbo_is_to_be_served(findings: Examine, npu: Npu) -> None:
    npu.capacity_bytes = 8 << 30
    assert findings()["device"].level == "OK"  # the demo model is small
    assert findings(model="app/weights/demo")["device"].level == "WARN"


def test_a_queue_that_is_dead_fails_the_canary(findings: Examine, npu: Npu) -> None:
    npu.queue = "dead"
    found = findings()
    assert failed(found) == ["canary"]
    assert "does not compute any more" in found["canary"].detail
    assert "txt2img" not in found


def test_an_error_of_the_device_is_explained_with_its_remedy(findings: Examine, npu: Npu) -> None:
    npu.error = RuntimeError("NPU function error: x, error code is 507054")
    found = findings()
    assert failed(found) == ["canary"]
    assert found["canary"].detail == "The device failed (the device's memory has an ECC error of several bits)."
    assert "npu-smi info -t ecc" in found["canary"].remedy


def test_weights_that_do_not_fit_fail_the_load(findings: Examine, npu: Npu) -> None:
    gc.collect()  # else the load could free the models of earlier tests, and fit
    npu.capacity_bytes = npu.allocated_bytes + (1 << 20)
    assert failed(findings()) == ["load"]


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_a_picture_that_is_none_fails_in_its_mode(findings: Examine, npu: Npu, value: float) -> None:
    npu.picture_value = value
    found = findings()
    assert failed(found) == ["txt2img", "img2img", "inpaint"]
    assert "not a picture" in found["txt2img"].detail


def test_bf16_keeps_the_vae_in_bf16(findings: Examine) -> None:
    assert "VAE in bfloat16" in findings(dtype="bf16")["load"].detail


@pytest.mark.long
@pytest.mark.only_long
def test_graphs_are_timed_as_they_would_be_served(findings: Examine, npu: Npu, tiny_folder: Path) -> None:
    found = findings(model=str(tiny_folder), npu_graphs=True)
    assert failed(found) == []
    assert npu.calls["npugraph_ex"] > 0
    assert "unet" in found["txt2img"].detail
