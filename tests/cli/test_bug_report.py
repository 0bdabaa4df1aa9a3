"""The report for a fault: complete, and without secrets."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from app.cli.bug_report import write_report
from app.cli.doctor import Finding
from app.cli.tuning.tuned_file import write_tuned
from app.settings import Settings


def written(folder: Path, settings: Settings, *findings: Finding) -> tuple[str, dict[str, object]]:
    write_report(folder / "report.zip", settings, findings, {})
    with zipfile.ZipFile(folder / "report.zip") as archive:
        return archive.read("report.md").decode(), json.loads(archive.read("report.json"))


def test_one_file_has_checks_versions_settings_and_a_picture_of_each_mode(tiny_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app", "doctor", "--report", str(tmp_path / "report.zip")]
    settings = ["--model", str(tiny_folder), "--device", "cpu", "--port", "0", "--warm-up-sizes", "64x96"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Look at it before you pass it on" in done.stderr
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        modes = {"txt2img", "img2img", "inpaint"}
        assert set(archive.namelist()) == {"report.md", "report.json", *(f"{mode}.png" for mode in modes)}
        images = {mode: Image.open(io.BytesIO(archive.read(f"{mode}.png"))) for mode in modes}
        assert {image.size for image in images.values()} == {(64, 96)}
        assert _has_the_kept_part(images["inpaint"])
        text, facts = archive.read("report.md").decode(), json.loads(archive.read("report.json"))
    assert {finding["check"] for finding in facts["findings"]} >= {"python", "weights", "load", *modes}
    assert "unet" in text, "the times of the stages"
    assert {"torch", "diffusers"} <= set(facts["packages"])
    assert facts["settings"]["TURBO_WARM_UP_SIZES"] == "64x96"
    assert "TURBO_MAX_QUEUE" not in facts["settings"], "a default"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.zip"]


def _has_the_kept_part(inpainted: Image.Image) -> bool:
    """Whether the picture is finished: its right edge, which the mask does not draw, has the sample's pixels."""
    kept = (inpainted.width - 8, 0, *inpainted.size)
    sample = Image.linear_gradient("L").resize(inpainted.size).convert("RGB")
    return inpainted.crop(kept).tobytes() == sample.crop(kept).tobytes()


def test_no_secret_and_no_home_folder_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:word@proxy:3128")
    monkeypatch.setenv("TORCH_API_KEY", "also-secret")
    monkeypatch.setenv("DB_PASSWORD", 'pä"ss\\word')
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("TASK_QUEUE_ENABLE", "1")
    keys = tmp_path / "keys"
    keys.write_text("studio: 0123456789abcdef0123456789\n")
    settings = Settings(api_keys_file=keys, max_batch=4, host="192.168.7.9")
    findings = (
        Finding("weights", "FAIL", f"401 for hf_very_secret in {Path.home()}/x by http://user:word@proxy:3128"),
        Finding("hub", "FAIL", 'https://bob:hidden@hub.example refused pä"ss\\word; this is true'),
        Finding("doors", "OK", "API keys of studio. 192.168.7.9:8000 is free."),
    )
    text, facts = written(tmp_path, settings, *findings)
    for content in (text, json.dumps(facts)):
        secrets = ("hf_very_secret", "word@proxy", "also-secret", "0123456789abcdef", str(keys), "hidden", "studio")
        for secret in (*secrets, "192.168.7.9", 'pä"ss', json.dumps('pä"ss')[1:-1]):
            assert secret not in content
        assert Path.home() == Path("/") or str(Path.home()) not in content
    assert "401 for (HF_TOKEN) in ~/x by (HTTPS_PROXY)" in text
    assert "https://(credentials)@hub.example refused (DB_PASSWORD); this is true" in text
    assert "TASK_QUEUE_ENABLE=1" in text
    assert "TURBO_API_KEYS_FILE=(set)" in text
    assert "TURBO_MAX_BATCH=4" in text


def test_the_table_of_tune_is_in_it(tmp_path: Path) -> None:
    tuned = tmp_path / "turbo.env"
    write_tuned(tuned, facts=["Device: a toaster"], table=["1 batching=fast accepted"], settings={"batching": "fast"})
    text, facts = written(tmp_path, Settings(env_file=tuned))
    assert "1 batching=fast accepted" in text
    assert "batching=fast accepted" in str(facts["tune"])
    text, _ = written(tmp_path, Settings(env_file=tmp_path / "none"))
    assert "`python -m app tune` has not run here" in text


def test_a_file_that_cannot_be_written_is_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app", "doctor", "--report", str(tmp_path / "none" / "report.zip")]
    done = subprocess.run(
        [*command, "--model", str(tiny_folder / "none"), "--port", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "report.zip cannot be written: No such file or directory" in done.stderr
