"""The doctor on this machine, which has no NPU; tests/npu has the simulated one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.doctor import Finding, examine
from app.settings import Settings


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
    ]
    assert failed(found) == []
    assert "VAE in float32" in found["load"].detail
    assert "unet 0." in found["txt2img"].detail
    assert "vae encode 0." in found["img2img"].detail


def test_what_has_failed_is_not_built_upon(tmp_path: Path) -> None:
    found = findings(model=str(tmp_path / "nothing"))
    assert failed(found) == ["weights"]
    assert "There is no folder" in found["weights"].detail
    assert "canary" in found
    assert "txt2img" not in found


def test_weights_that_do_not_load_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "block_out_channels": [8, 16, 24]}))
    found = findings(model=str(folder))
    assert failed(found) == ["load"]
    assert "cannot be loaded" in found["load"].detail


def test_a_port_that_is_taken_is_named(tiny_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = findings(model=str(tiny_folder), port=port)
    assert failed(found) == ["port"]
    assert f"127.0.0.1:{port}" in found["port"].detail
    assert "TURBO_PORT" in found["port"].remedy


def test_an_npu_that_is_asked_for_where_nothing_is_installed_fails_with_what_to_install(tmp_path: Path) -> None:
    settings = Settings.model_validate({"device": "npu", "port": 0})
    found = {finding.check: finding for finding in examine(settings, root=tmp_path)}
    assert failed(found) == ["torch_npu", "cann", "device files"]
    assert "torch-npu" in found["torch_npu"].remedy
    assert "set_env.sh" in found["cann"].remedy


def test_a_misspelt_variable_is_to_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBO_MAX_QEUE", "3")
    found = findings(model="fake")
    assert found["settings"] == Finding(
        "settings", "WARN", "TURBO_MAX_QEUE is no setting.", "Did you mean TURBO_MAX_QUEUE?"
    )


@pytest.mark.parametrize("model", ["fake", "hf:nobody/nothing"])
def test_the_command_prints_a_line_each_and_its_exit_code_tells(model: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TURBO_WEIGHTS_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "app", "doctor", "--device", "cpu", "--port", "0", "--model", model]
    plain = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    as_json = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, timeout=60, check=False
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
