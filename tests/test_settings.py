import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import (
    MAX_SIDE,
    MIN_SIDE,
    SIDE_MULTIPLE,
    Settings,
    parse_sizes,
    read_env_file,
    unknown_variables,
)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBO_MAX_QUEUE", "7")
    monkeypatch.setenv("TURBO_MAX_BODY_BYTES", "2MiB")
    settings = Settings()
    assert settings.max_queue == 7
    assert settings.max_body_bytes == 2 * 1024 * 1024


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc] # the assignment must fail


def test_the_weights_folder_follows_the_user_s_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/srv/cache")
    assert Settings().weights_dir == Path("/srv/cache/sdxl-turbo-server")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Settings().weights_dir == Path("/home/somebody/.cache/sdxl-turbo-server")


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """If HOST is unset, Compose sets `TURBO_HOST: ${HOST}` to an empty text, which would mean every interface."""
    for name in ("TURBO_HOST", "TURBO_WEIGHTS_DIR", "TURBO_MAX_QUEUE"):
        monkeypatch.setenv(name, "")
    assert Settings() == Settings.model_construct(weights_dir=Settings().weights_dir)
    assert Settings().host == "127.0.0.1"


def test_a_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Settings(weights_dir=Path("~/weights")).weights_dir == Path("/home/somebody/weights")


def test_a_home_that_is_nobody_s_is_refused() -> None:
    with pytest.raises(ValidationError, match="Set a path without ~"):
        Settings(weights_dir=Path("~nobody-of-this-name/weights"))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3", "npu", "npu:15"])
def test_devices_that_can_be_asked_for(device: str) -> None:
    assert Settings(device=device).device == device


@pytest.mark.parametrize("device", ["", "gpu", "cpu:0", "npu:", "cuda:-1", "mps"])
def test_devices_that_cannot(device: str) -> None:
    with pytest.raises(ValidationError):
        Settings(device=device)


def test_warm_up_sizes_are_read_as_width_by_height() -> None:
    assert parse_sizes("512x512, 768x1024") == [(512, 512), (768, 1024)]


def test_the_service_can_be_warmed_up_at_the_sides_that_it_can_be_asked_for_and_at_no_other() -> None:
    for side in range(MAX_SIDE + 16):
        if MIN_SIDE <= side <= MAX_SIDE and side % SIDE_MULTIPLE == 0:
            assert Settings(warm_up_sizes=f"{side}x512").warm_up_sizes == f"{side}x512"
        else:
            with pytest.raises(ValidationError, match="multiples of 8 from 64 to 2048"):
                Settings(warm_up_sizes=f"{side}x512")


@pytest.mark.parametrize("sizes", ["512", "512x", "512x512,", "512*512", "512x512x3", "512x512 512x512", "٥١٢x512"])  # noqa: RUF001
def test_what_is_no_size_is_refused_by_its_name(sizes: str) -> None:
    with pytest.raises(ValidationError, match="is not WIDTHxHEIGHT"):
        Settings(warm_up_sizes=sizes)


def test_unknown_variables_are_named_with_the_nearest_setting() -> None:
    environ = {"TURBO_MAX_PIXEL": "", "TURBO_PORT": "", "turbo_port": "", "TURBO_XYZZY_PLUGH": "", "PATH": ""}
    assert unknown_variables(environ) == [("TURBO_MAX_PIXEL", "TURBO_MAX_PIXELS"), ("TURBO_XYZZY_PLUGH", None)]


def test_every_setting_has_its_documentation() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"max_pixels": 512 * 512 - 1}, "TURBO_MAX_PIXELS=262143 is too small for 512x512"),
        (
            {"max_pixels": 512 * 512, "warm_up_sizes": "512x512,768x512"},
            "TURBO_WARM_UP_SIZES has 768x512, which exceeds TURBO_M",
        ),
        ({"rate_limit": "0/second"}, "would reject every request"),
        ({"rate_limit": "10/second;0/hour"}, "would reject every request"),
        ({"rate_limit": "10/0 second"}, "would reject every request"),
        ({"rate_limit": "5 per 0 minutes"}, "would reject every request"),
        ({"cors_origins": "https://app.example/page"}, "is not an origin"),
        ({"cors_origins": "https://user@app.example"}, "is not an origin"),
        ({"cors_origins": "https://app.example:99999"}, "is not an origin"),
        ({"cors_origins": "https://*.example"}, "is not an origin"),
        ({"rate_limit": "10/00 second"}, "would reject every request"),
        ({"cors_origins": "app.example"}, "is not an origin"),
        ({"cors_origins": "https://a\\b"}, "is not an origin"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(setting: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(reason)):
        Settings.model_validate(setting)


def test_the_least_that_can_work_is_taken() -> None:
    settings = Settings(max_pixels=512 * 512, warm_up_sizes="512x512,1024x256", rate_limit="1/second")
    assert settings.max_pixels == 512 * 512


@pytest.mark.parametrize("rates", ["10/05 second", "10 per 010 minutes", "010/second"])
def test_a_number_of_a_rate_may_begin_with_zero(rates: str) -> None:
    assert Settings(rate_limit=rates).rate_limit == rates


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("HTTPS://App.Example", "https://app.example"),
        ("https://app.example:443/", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("https://app.example:80", "https://app.example:80"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("*", "*"),
    ],
)
def test_origins_are_kept_as_browsers_write_them(written: str, origin: str) -> None:
    assert Settings(cors_origins=f"http://localhost:3000, {written}").cors_origins == f"http://localhost:3000,{origin}"


def test_a_file_of_variables_sets_those_that_are_not_set_whatever_their_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "turbo.env"
    path.write_text("# a comment\nTURBO_THREADS=3\nTURBO_MAX_BATCH=4\nTURBO_VAE='/data/${X}/vae'\nTURBO_PORT=1\n")
    monkeypatch.setenv("turbo_threads", "1")
    monkeypatch.setenv("TURBO_MAX_BATCH", "")
    monkeypatch.setenv("TURBO_PORT", "2")
    monkeypatch.setenv("TURBO_VAE", "")
    read_env_file(path)
    settings = Settings()
    assert (settings.threads, settings.max_batch, settings.port) == (1, 4, 2)
    assert settings.vae == "/data/${X}/vae", "no variable is put into a value"


@pytest.mark.parametrize(("content", "reason"), [(b"TURBO_PORT=\xff", "cannot be read"), (None, "cannot be read")])
def test_a_file_of_variables_that_cannot_be_read_is_wrong_usage(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = str(tmp_path / "turbo.env")
    if content is None:
        path = "~no-such-user/turbo.env"
    else:
        Path(path).write_bytes(content)
    command = [sys.executable, "-m", "app", "serve", "--env-file", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
