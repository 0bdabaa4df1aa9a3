"""The service as an operator meets it: a process that is started, asked, and stopped."""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app import __version__
from app.api.native.routes import Img2ImgForm
from app.cli.commands import main
from app.modes.txt2img import Txt2ImgRequest
from app.settings import Settings
from benchmarks.support.ports import free_port
from tests.conftest import ServerProcess, StartServer, opened, wait_for_queue

TXT2IMG = {"prompt": "a red circle", "seed": 3, "width": 128, "height": 96, "num_inference_steps": 2}
COMMANDS = ["serve", "generate", "pull", "doctor", "bench", "tune", "mcp"]
IMG2IMG = {"prompt": "a green square", "seed": "3", "strength": "0.5", "num_inference_steps": "2"}


def ask(url: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{url}/txt2img", json={**TXT2IMG, **fields}, timeout=60)


def ask_in_background(url: str, **fields: object) -> "Future[httpx.Response]":
    """Send a request, and return when the device has begun with it."""
    future = ThreadPoolExecutor(max_workers=1).submit(ask, url, **fields)
    with httpx.Client(base_url=url) as client:
        wait_for_queue(client)
    return future


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    variables = {f"TURBO_{name.upper()}": str(value) for name, value in settings.items()}
    environment = {"TURBO_MCP": "false", **os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def errors(log: str) -> list[str]:
    """The events logged as error or worse; anything that is no log line counts too."""
    events = []
    for line in log.splitlines():
        entry = json.loads(line)
        if entry["level"] in ("error", "critical"):
            events.append(entry["event"])
    return events


# The main job, with a real pipeline in a real process.


def test_both_modes_paint_and_paint_the_same_after_a_restart(start_server: StartServer) -> None:
    pictures = []
    for warm in (False, True):
        server = start_server(model="demo", warm=warm)
        url = server.wait_until_started()
        made = ask(url)
        assert made.status_code == 200
        assert opened(made.content).size == (128, 96)
        changed = httpx.post(f"{url}/img2img", data=IMG2IMG, files={"image": made.content}, timeout=60)
        assert changed.status_code == 200
        assert changed.headers["x-steps"] == "1"
        assert httpx.get(f"{url}/healthz/ready").json()["device"] == "cpu"
        pictures.append((made.content, changed.content))
        server.terminate()
        assert server.wait() == 0
        assert errors(server.log) == []
    assert pictures[0] == pictures[1]


def test_health_answers_within_50_ms_while_a_real_picture_is_made(start_server: StartServer) -> None:
    url = start_server(model="demo", warm=True).wait_until_started()
    with httpx.Client(base_url=url) as client:
        picture = ask_in_background(url, width=1024, height=1024, num_inference_steps=4)
        durations_s = []
        while not picture.done():
            started = time.monotonic()
            running_s = client.get("/healthz/ready").json()["queue"]["running_s"]
            if running_s > 0:
                durations_s.append(time.monotonic() - started)
    assert picture.result().status_code == 200
    assert len(durations_s) > 10
    assert statistics.median(durations_s) < 0.05


def test_serving_weights_that_are_on_the_disk_touches_no_network(start_server: StartServer) -> None:
    refuse = """
import socket, sys
def refuse(self, address):
    print("NETWORK", address, file=sys.stderr, flush=True)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
"""
    server = start_server(prelude=refuse, warm=True, model="demo")
    assert ask(server.wait_until_started()).status_code == 200
    assert "NETWORK" not in server.log


def test_the_largest_legal_request_ends_no_service_whose_limits_fit_small_ones(start_server: StartServer) -> None:
    slow = """
from app import main
from tests.support.gated_pipeline import GatedPipeline
def work(params):
    return params.width * params.height * params.effective_steps / 64**2
main.load_fake = lambda **_: GatedPipeline(unit_s=0.002, work=work).load()
"""
    server = start_server(prelude=slow, model="fake", hang_limit_s=0.5, warm_up_sizes="64x64")
    url = server.wait_until_started()
    largest = {"prompt": "a fox", "width": 1024, "height": 1024, "num_inference_steps": 4}  # 2 s of sleep
    response = httpx.post(f"{url}/txt2img", json=largest, timeout=120)
    assert response.status_code == 200, response.text
    assert httpx.get(f"{url}/healthz/live").status_code == 200


# Start.


def test_the_port_is_closed_until_the_service_is_warm(start_server: StartServer) -> None:
    port = free_port()
    server = start_server(model="fake:0.5", port=port)
    refused = 0
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            response = httpx.get(f"http://127.0.0.1:{port}/healthz/ready")
        except httpx.ConnectError:
            refused += 1
            time.sleep(0.05)
            continue
        assert response.status_code == 200
        break
    assert refused > 0
    assert "warmed up img2img" in server.log


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "/nowhere"}, "There is no folder /nowhere. Check TURBO_MODEL."),
        ({"model": "hf:stabilityai/sdxl-turbo"}, "Run `python -m app pull`"),
        ({"vae": "hf:madebyollin/taesdxl"}, "Run `python -m app pull` with the same TURBO_VAE and TURBO_WEIGHTS_DIR"),
        ({"vae": "hf:taesdxl"}, "TURBO_VAE=hf:taesdxl is not HUB:OWNER/NAME[@REVISION]."),
        ({"vae": "/nowhere"}, "There is no folder /nowhere. Check TURBO_VAE."),
        ({"model": "hf:sdxl-turbo"}, "TURBO_MODEL=hf:sdxl-turbo is not HUB:OWNER/NAME[:FILE.safetensors][@REVISION]."),
        ({"model": "fake:0.3", "deadline_s": "0.1"}, "s on this device, and TURBO_DEADLINE_S is 0.1."),
    ],
)
def test_a_start_that_cannot_succeed_ends_with_one_clear_line(
    tmp_path: Path, settings: dict[str, str], reason: str
) -> None:
    done = run(weights_dir=tmp_path, **settings)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    first, *rest = errors(done.stderr)
    assert first.startswith("cannot start: ")
    assert reason in first
    assert rest == ["Application startup failed. Exiting."]


def test_a_device_that_is_not_there_ends_the_start(start_server: StartServer) -> None:
    server = start_server(model="demo", device="npu", warm=True)
    assert server.wait() == 3
    assert "torch_npu cannot be loaded" in errors(server.log)[0]
    assert "Traceback" not in server.log


def test_a_library_that_cannot_be_imported_ends_the_start_with_its_reason(start_server: StartServer) -> None:
    """As torch_npu without CANN's libraries: torch imports it, and diffusers asks for it."""
    server = start_server(prelude="import sys; sys.modules['diffusers'] = None", model="demo")
    assert server.wait(60) == 3
    reason = errors(server.log)[0]
    assert "cannot be imported (import of diffusers halted" in reason
    assert "python -m app doctor" in reason
    assert "Traceback" not in server.log


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])  # noqa: S104 - as a container has it
def test_a_port_that_is_taken_ends_the_start_before_anything_is_loaded_with_one_line(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(model="/nowhere", host=host, port=port)  # which would be complained of if it was looked for
    assert done.returncode == 3
    (line,) = errors(done.stderr)
    assert line.startswith(f"cannot start: {host}:{port}: Address already in use. Set TURBO_PORT")
    assert "nowhere" not in done.stderr


def test_a_host_that_is_not_this_machine_s_ends_the_start_with_one_line() -> None:
    done = run(model="/nowhere", host="192.0.2.1")
    assert done.returncode == 3
    (line,) = errors(done.stderr)
    assert line.startswith("cannot start: 192.0.2.1:8000: Cannot assign requested address. Set TURBO_HOST")


# Logs.


def test_each_request_is_one_json_line_with_its_times_and_without_its_prompt(start_server: StartServer) -> None:
    server = start_server(model="fake", log_format="json")
    httpx.post(
        f"{server.wait_until_started()}/txt2img",
        json={**TXT2IMG, "prompt": "my secret"},
        headers={"X-Request-ID": "id-1"},
    )
    server.wait_for_log("id-1")
    lines = [json.loads(line) for line in server.log.splitlines()]
    (line,) = (line for line in lines if line["event"] == "request")
    assert line["request_id"] == "id-1"
    assert (line["method"], line["path"], line["status"], line["mode"]) == ("POST", "/txt2img", 200, "txt2img")
    for stage in ("queue_s", "inference_s", "encode_s", "duration_s"):
        assert line[stage] >= 0
    assert "my secret" not in server.log


def test_a_crash_does_not_leak_prompts_into_readable_logs(start_server: StartServer) -> None:
    """rich, where it is installed, would print every variable of every frame."""
    crash = """
from app.pipelines.fake import FakePipeline
def paint(self, params):
    if not params.prompt.startswith("warm-up"):
        raise RuntimeError("broken")
    return FakePipeline.original(self, params)
FakePipeline.original, FakePipeline._paint = FakePipeline._paint, paint
"""
    server = start_server(prelude=crash, model="fake", log_format="console")
    assert ask(server.wait_until_started(), prompt="my secret").status_code == 500
    server.wait_for_log("RuntimeError: broken")
    assert "my secret" not in server.log


def test_prompts_are_logged_when_that_is_asked_for(start_server: StartServer) -> None:
    server = start_server(model="fake", log_format="json", log_prompts="true")
    ask(server.wait_until_started())
    server.wait_for_log('"prompt": "a red circle"')  # the line follows the answer


def test_a_prompt_that_is_cut_does_not_leak_through_the_libraries_warnings(start_server: StartServer) -> None:
    server = start_server(model="demo", warm=True)
    response = ask(server.wait_until_started(), prompt="secret " * 50)
    assert response.headers["x-prompt-truncated"] == "true"
    assert "secret" not in server.log


def test_an_unknown_variable_is_warned_of_with_the_nearest_setting(start_server: StartServer) -> None:
    server = start_server(model="fake", max_que=3)
    server.wait_until_started()
    assert "TURBO_MAX_QUE is not a setting; did you mean TURBO_MAX_QUEUE?" in server.log


# The command line itself.


def test_a_flag_beats_the_environment(tmp_path: Path) -> None:
    done = run("pull", "--model", "/by/flag", model="/by/environment", weights_dir=tmp_path)
    assert done.returncode == 3
    assert "/by/flag" in done.stderr
    assert "/by/environment" not in done.stderr


def test_flags_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def pull(settings: Settings, _: object) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr("app.cli.commands._COMMANDS", {"pull": pull})
    monkeypatch.setenv("TURBO_PORT", "1")
    monkeypatch.setenv("TURBO_MAX_QUEUE", "7")
    assert main(["pull", "--port", "2", "--no-image-metadata", "--log-prompts", "--max-pixels=300000", "--vae="]) == 0
    (settings,) = seen
    assert (settings.port, settings.image_metadata, settings.log_prompts) == (2, False, True)
    assert (settings.max_pixels, settings.max_queue, settings.vae) == (300000, 7, "")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_the_help_lists_every_command_with_an_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for command in COMMANDS:
        assert any(line.startswith(f"  {command} ") for line in lines)
        assert any(line.startswith(f"  python -m app {command} ") for line in lines)
    assert "`python -m app COMMAND --help`" in lines[-2]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("form", ["{} --help", "help {}"])
def test_a_command_s_help_has_its_own_options_then_every_setting_under_a_heading_then_examples(
    command: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(form.format(command).split())
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m app {command} ")
    own, _, rest = text.partition("\nsettings:\n")
    settings, _, examples = rest.partition("\nexamples:\n")
    assert "TURBO_MAX_QUEUE=8" in settings
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        assert f"\n  {flag}" in settings
        assert f"\n  {flag}" not in own
        assert field.annotation is not bool or f", --no-{flag[2:]}" in settings
    assert f"python -m app {command} " in examples
    assert "\nthe model and its device:\n  --model TEXT" in settings
    assert ("--json" in own) == (command in ("generate", "doctor", "bench", "tune"))


def test_options_of_generate_are_the_fields_of_a_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    own = capsys.readouterr().out.partition("\nsettings:\n")[0]
    fields = Txt2ImgRequest.model_fields | Img2ImgForm.model_fields
    for name in fields.keys() - {"prompt", "guidance_scale", "negative_prompt"}:  # which the model does not use
        assert re.search(f"--{name.replace('_', '-')}[ ,]", own)  # the value follows each or only the last spelling
    assert "PROMPT" in own


def test_help_and_misspelt_options_wait_for_no_large_import() -> None:
    code = """
import sys
from app.cli.commands import main
for arguments in (["--help"], ["--version"], ["generate", "--help"], ["generate", "--stepz"], ["bake"]):
    try:
        main(arguments)
    except SystemExit:
        pass
assert not {"torch", "diffusers", "fastapi", "uvicorn", "numpy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_version_is_told() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"sdxl-turbo-server {__version__}\n")


def test_the_script_that_pip_makes_is_known_by_its_own_name() -> None:
    code = "import sys; sys.argv = ['/bin/sdxl-turbo-server', '--help']; from app.__main__ import run; run()"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "  sdxl-turbo-server generate " in done.stdout
    module = subprocess.run([sys.executable, "-m", "app", "--help"], check=True, capture_output=True, text=True)
    assert done.stdout.replace("sdxl-turbo-server", "python -m app") == module.stdout


@pytest.mark.parametrize(
    ("arguments", "settings", "reason"),
    [
        (["bake"], {}, "There is no command 'bake'. Commands: serve, generate, pull, doctor, bench, tune, mcp."),
        (["generat"], {}, "Did you mean generate?"),
        (["--max-queue", "many"], {}, "--max-queue many: Input should be a valid integer"),
        (["--nothing", "1"], {}, "unrecognized arguments: --nothing"),
        (["pull", "--devise", "cpu"], {}, "did you mean --device?"),
        (["generate", "a", "fox"], {}, "in quotes"),
        (["generate"], {}, "required: PROMPT"),
        ([], {"port": "tcp://10.0.0.1:8000"}, "TURBO_PORT=tcp://10.0.0.1:8000: Input should be a valid integer"),
        ([], {"device": "gpu"}, "TURBO_DEVICE=gpu: "),
        ([], {"rate_limit": "0/second"}, "TURBO_RATE_LIMIT=0/second: '0/second' would reject every request"),
        ([], {"max_pixels": "262143"}, "TURBO_MAX_PIXELS=262143 is too small"),
    ],
)
def test_wrong_use_ends_with_2_and_the_reason(arguments: list[str], settings: dict[str, str], reason: str) -> None:
    done = run(*arguments, **settings)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Value error" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert done.stdout == ""


@pytest.mark.parametrize(("model", "end"), [("demo", "demo is ready in /"), ("fake", "fake needs no weights")])
def test_a_pull_of_what_comes_along_has_nothing_to_do_and_needs_no_weights_folder(
    tmp_path: Path, model: str, end: str
) -> None:
    done = run("pull", model=model, weights_dir=tmp_path / "none")
    assert done.returncode == 0, done.stderr
    assert end in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_server_is_the_default_command(start_server: StartServer) -> None:
    server: ServerProcess = start_server(model="fake")
    assert httpx.get(f"{server.wait_until_started()}/healthz/live").status_code == 200


def test_propagators_that_are_not_installed_are_left_out_as_platforms_name_them_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "tracecontext, b3")
    done = run("bench", model="fake")  # which imports OpenTelemetry, and has nothing to measure
    assert "b3: propagators that are not installed are ignored" in done.stderr
    assert "The fake has no model to measure" in done.stderr
