"""The doctor on this machine, which has no NPU; tests/npu has the simulated one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.cli.doctor import Finding, examine
from app.settings import Settings
from tests.support.lora import write_lora


def findings(**settings: object) -> dict[str, Finding]:
    """The findings by the name of the check; of several the last."""
    all_settings = {"device": "cpu", "port": 0, "warm_up_sizes": "64x64", **settings}
    return {finding.check: finding for finding in examine(Settings.model_validate(all_settings))}


def failed(found: dict[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if finding.level == "FAIL"]


def test_on_a_sound_machine_everything_is_examined_and_nothing_fails(tiny_folder: Path) -> None:
    found = findings(model=str(tiny_folder))
    assert list(found) == [
        "python",
        "port",
        "torch",
        "weights",
        "scheduler",
        "device",
        "canary",
        "load",
        "txt2img",
        "img2img",
        "inpaint",
    ]
    assert failed(found) == []
    assert "VAE in float32" in found["load"].detail
    assert "unet 0." in found["txt2img"].detail
    assert "vae encode 0." in found["img2img"].detail
    assert "vae encode 0." in found["inpaint"].detail


def test_a_build_of_torch_for_cuda_without_a_gpu_is_to_be_looked_at(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = findings(model=str(tiny_folder))
    assert found["torch"].level == ("OK" if torch.cuda.is_available() else "WARN")
    assert failed(found) == []


def test_what_has_failed_is_not_built_upon(tmp_path: Path) -> None:
    found = findings(model=str(tmp_path / "nothing"))
    assert failed(found) == ["weights"]
    assert "There is no folder" in found["weights"].detail
    assert "canary" in found
    assert "txt2img" not in found


def test_another_vae_is_examined_and_used(tiny_folder: Path, tiny_vae: Path, tmp_path: Path) -> None:
    found = findings(model=str(tiny_folder), vae=str(tiny_vae))
    assert failed(found) == []
    assert found["vae"].detail.startswith(f"{tiny_vae.name}: 0.00 GB in ")
    assert "txt2img" in found
    found = findings(model=str(tiny_folder), vae="hf:madebyollin/taesdxl", weights_dir=tmp_path)
    assert failed(found) == ["vae"]
    assert "Run `python -m app pull` with the same TURBO_VAE" in found["vae"].detail
    assert "load" not in found


def test_a_fine_tune_with_turbo_s_scheduler_and_a_lora_is_examined_and_used(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "tuned")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("EulerAncestralDiscreteScheduler", "DDIMScheduler"))
    lora = write_lora(tmp_path / "style.safetensors", tiny_folder, naming="kohya")
    found = findings(model=str(folder), scheduler="turbo", lora=f"{lora}:0.5")
    assert failed(found) == []
    assert found["lora"].detail.startswith("style: ")
    assert found["scheduler"].detail == "SDXL-Turbo's own."
    assert failed(findings(model=str(folder), lora=f"{lora}:0.5")) == ["weights"]
    lora.unlink()
    assert failed(findings(model=str(folder), scheduler="turbo", lora=f"{lora}:0.5")) == ["lora"]


def test_weights_that_do_not_load_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "block_out_channels": [8, 16, 24]}))
    found = findings(model=str(folder))
    assert failed(found) == ["load"]
    assert "does not fit its config.json: conv_in.weight" in found["load"].detail


def test_a_port_that_is_taken_is_named(tiny_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = findings(model=str(tiny_folder), port=port)
    assert failed(found) == ["port"]
    assert f"127.0.0.1:{port}" in found["port"].detail
    assert "TURBO_PORT" in found["port"].remedy


def test_an_npu_that_is_asked_for_where_nothing_is_installed_fails_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = Settings.model_validate({"device": "npu", "port": 0})
    found = {finding.check: finding for finding in examine(settings, root=tmp_path)}
    assert failed(found) == ["torch_npu", "cann", "device files"]
    assert "torch-npu" in found["torch_npu"].remedy
    assert "set_env.sh" in found["cann"].remedy
    assert [name for name, finding in found.items() if finding.level == "WARN"] == ["driver", "npu-smi"]
    assert "version.info is missing" in found["driver"].detail
    assert found["npu-smi"].detail == "npu-smi is not in PATH."
    assert "mount /usr/local/bin/npu-smi" in found["npu-smi"].remedy


def test_a_misspelt_variable_is_to_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBO_MAX_QEUE", "3")
    found = findings(model="fake")
    assert found["settings"] == Finding(
        "settings", "WARN", "TURBO_MAX_QEUE is not a setting.", "Did you mean TURBO_MAX_QUEUE?"
    )


@pytest.mark.parametrize("model", ["fake", "hf:nobody/nothing"])
def test_the_command_prints_a_line_each_and_its_exit_code_tells(model: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TURBO_WEIGHTS_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "app", "doctor", "--device", "cpu", "--port", "0", "--model", model]
    plain = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    as_json = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    answer = json.loads(as_json.stdout)
    *lines, last = plain.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [finding["level"], finding["check"]] for finding in answer["findings"]
    ]
    if model == "fake":
        assert (plain.returncode, as_json.returncode, answer["healthy"]) == (0, 0, True)
        assert last == "0 failed, 1 to look at"
    else:
        assert (plain.returncode, as_json.returncode, answer["healthy"]) == (1, 1, False)
        assert any("python -m app pull" in line for line in lines)


def test_an_address_of_another_machine_is_not_called_a_taken_port() -> None:
    found = findings(model="fake", host="192.0.2.1")
    assert failed(found) == ["port"]
    assert "TURBO_HOST" in found["port"].remedy


@pytest.mark.parametrize("host", ["ä..b", "no.such.host.invalid", "1" * 80])
def test_a_host_that_is_no_name_fails_and_the_rest_is_looked_at(host: str) -> None:
    found = findings(model="fake", host=host)
    assert failed(found) == ["port"]
    assert "model" in found


def test_who_may_ask_is_told_where_it_matters(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert "doors" not in findings(model="fake")
    assert findings(model="fake", host="0.0.0.0")["doors"].level == "WARN"  # noqa: S104 - what is warned of
    assert failed(findings(model="fake", api_keys_file=keys)) == ["doors"]
    keys.write_text("alice: 0123456789abcdef\nalice: fedcba9876543210\nbob: 0123456789abcdeg\n")
    assert findings(model="fake", api_keys_file=keys)["doors"].detail == "API keys of alice, bob."


def test_weights_that_may_not_be_read_fail_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_folder, folder)
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    found = findings(model=str(folder))
    assert failed(found) == ["weights"]
    assert "scheduler_config.json" in found["weights"].detail


def test_what_cannot_be_imported_is_told_by_its_root_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "app.pipelines.sdxl_turbo":
                raise RuntimeError("Failed to load the backend extension") from ImportError("libascend_hal.so: lost")

    monkeypatch.delitem(sys.modules, "app.pipelines.sdxl_turbo", raising=False)
    monkeypatch.delattr("app.pipelines.sdxl_turbo", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    found = findings()
    assert failed(found) == ["torch"]
    assert found["torch"].detail == "torch cannot be imported: libascend_hal.so: lost."


NOISE = """
import os, sys
from app.cli import doctor
look = doctor.examine
def noisy(settings):
    os.write(1, b"[INFO] RUNTIME\\n")
    yield from look(settings)
doctor.examine = noisy
from app.cli.commands import main
main(["doctor", "--model", "fake", "--port", "0", *sys.argv[1:]])
"""


def test_what_libraries_write_to_stdout_is_not_in_the_report() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOISE, "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert json.loads(done.stdout)["healthy"] is True
    assert "[INFO] RUNTIME" in done.stderr


def test_a_reader_who_has_read_enough_is_no_error() -> None:
    command = f"{sys.executable} -m app doctor --model fake --port 0 | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
