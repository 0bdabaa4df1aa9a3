"""Pictures without a server: the files, what is said meanwhile, and what happens when it cannot be done."""

import base64
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from app.cli.generate import Order, generate
from app.errors import DeviceLostError, DeviceOutOfMemoryError
from app.main import create_app
from app.settings import Settings
from tests.conftest import PNG_MAGIC, opened, png, serving
from tests.support.gated_pipeline import GatedPipeline

SMALL = {"width": "128", "height": "96"}

Generate = Callable[..., int]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And with the signals of pytest afterwards."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Generate:
    """Makes pictures in this process, on the fake unless `settings` say otherwise, and returns the exit code."""

    def make(
        prompt: str = "a fox",
        *,
        image: str | None = None,
        output: str | None = None,
        as_json: bool = False,
        stdin: bytes = b"",
        settings: Settings | None = None,
        **fields: str,
    ) -> int:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        order = Order(fields={"prompt": prompt, **fields}, image=image, output=output, as_json=as_json)
        return generate(order, settings or Settings(model="fake"))

    return make


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> GatedPipeline:
    """In place of the fake."""
    pipeline = GatedPipeline()
    monkeypatch.setattr("app.main.load_fake", lambda **_: pipeline.load())
    return pipeline


def run(
    *arguments: str, stdin: bytes | None = None, prelude: str = "", stdout: IO[bytes] | int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """`python -m app generate` in a process of its own, in this folder."""
    code = f"{prelude}\nimport sys\nfrom app.__main__ import run\nsys.argv[1:1] = ['generate']\nrun()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )


def files() -> list[str]:
    """What is in this folder."""
    return sorted(path.name for path in Path().iterdir())


def alone(made: Generate, output: str, **fields: str) -> bytes:
    """The file that a request for this one picture writes; it is removed."""
    assert made(output=output, **fields) == 0
    file = Path(output).read_bytes()
    Path(output).unlink()
    return file


# The same pictures as the server's.


def test_pictures_have_the_bytes_of_the_server_s_answers(made: Generate) -> None:
    Path("in.png").write_bytes(png((96, 64), "blue"))
    changes = {"prompt": "a green square", "seed": "4", "strength": "0.6", "num_inference_steps": "4"}
    with serving(create_app(Settings(model="demo", device="cpu", warm_up_sizes="64x64"))) as url:
        fields = {"prompt": "a red circle", "seed": 3, "width": 128, "height": 96, "num_images": 2}
        drawn = httpx.post(f"{url}/txt2img", json=fields, timeout=60).json()["images"]
        image, accept = {"image": Path("in.png").read_bytes()}, {"Accept": "image/webp"}
        changed = httpx.post(f"{url}/img2img", data=changes, files=image, headers=accept, timeout=60).raise_for_status()
    options = "--seed 3 --width 128 --height 96 --num-images 2 -o drawn.png --device cpu"
    assert run("a red circle", *options.split()).returncode == 0
    for number, picture in enumerate(drawn, start=1):
        assert Path(f"drawn-{number}.png").read_bytes() == base64.b64decode(picture["b64"])
    on_demo = Settings(model="demo", device="cpu")
    assert made(**changes, image="in.png", output="changed.webp", settings=on_demo) == 0
    assert Path("changed.webp").read_bytes() == changed.content


# What is written where.


def test_the_files_name_goes_to_stdout_and_what_people_want_to_know_to_stderr() -> None:
    done = run("a fox", "--seed", "42", "--model", "fake", "-o", "fox.png")
    assert done.returncode == 0
    assert done.stdout == b"fox.png\n"
    assert done.stderr.decode().splitlines() == [
        "loading fake",
        "making 1 picture, 512x512, 1 step, on none",
        "fox.png  512x512  seed 42  0.0 s",
    ]
    assert "Seed: 42," in opened(Path("fox.png").read_bytes()).text["parameters"]  # type: ignore[attr-defined] # of PNGs
    assert files() == ["fox.png"]


def test_on_a_terminal_the_seconds_are_counted_on_one_line_and_the_name_is_shown_once() -> None:
    ours, theirs = pty.openpty()
    code = "import sys; from app.cli.commands import main; main(sys.argv[1:])"
    arguments = ["generate", "a fox", "--model", "fake:0.3", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm"}
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # which is how a terminal ends
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait() == 0
    *_, before, last = shown.decode().replace("\r\n", "\n").split("\x1b[2K")
    assert re.fullmatch(r"making 1 picture, 512x512, 1 step, on none  0\.[1-9] s\r", before)
    assert last == "txt2img-1.png  512x512  seed 1  0.3 s\n"


@pytest.mark.parametrize(
    ("name", "format"), [("a.png", "PNG"), ("a.webp", "WEBP"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG")]
)
def test_the_suffix_decides_the_format(made: Generate, name: str, format: str) -> None:  # noqa: A002 - Pillow's word
    assert made(**SMALL, output=name) == 0
    picture = opened(Path(name).read_bytes())
    assert (picture.format, picture.size) == (format, (128, 96))


def test_a_file_that_is_named_is_replaced_also_through_a_link(made: Generate) -> None:
    Path("there.png").write_text("old")
    Path("link.png").symlink_to("there.png")
    assert made(output="link.png") == 0
    assert Path("link.png").is_symlink()
    assert Path("there.png").read_bytes().startswith(PNG_MAGIC)
    assert files() == ["link.png", "there.png"]


def test_a_file_that_is_replaced_keeps_its_permissions_and_one_that_may_not_be_written_is_refused(
    made: Generate,
) -> None:
    for name, mode in (("private.png", 0o600), ("read-only.png", 0o444)):
        Path(name).write_text("old")
        Path(name).chmod(mode)
        writable = os.access(name, os.W_OK)  # to root all is
        assert made(output=name) == (0 if writable else 2)
        assert Path(name).stat().st_mode & 0o777 == mode
        assert Path(name).read_bytes().startswith(PNG_MAGIC if writable else b"old")
    assert files() == ["private.png", "read-only.png"]


def test_a_name_may_be_as_long_as_names_may_be(made: Generate) -> None:
    name = "f" * 251 + ".png"
    assert made(output=name) == 0
    assert files() == [name]


def test_a_name_that_is_no_text_is_written_and_named_by_its_bytes() -> None:
    name = os.fsdecode(b"f\xff.png")
    done = run("a fox", "--model", "fake", "-o", name)
    assert (done.returncode, done.stdout) == (0, b"f\xff.png\n")
    assert files() == [name]


def test_a_file_that_is_not_named_is_a_new_one(made: Generate, capfd: pytest.CaptureFixture[str]) -> None:
    for prompt in ("a fox", "a cat", "a dog"):
        assert made(prompt, seed="7") == 0
    names = ["txt2img-7.png", "txt2img-7-2.png", "txt2img-7-3.png"]
    assert capfd.readouterr().out.splitlines() == names
    assert files() == sorted(names)
    assert len({Path(name).read_bytes() for name in names}) == 3
    assert made(image=names[0], seed="7") == 0
    assert Path("img2img-7.png").exists()


def test_several_pictures_are_numbered(made: Generate, capfd: pytest.CaptureFixture[str]) -> None:
    assert made(output="fox.webp", num_images="3", seed="7") == 0
    output = capfd.readouterr()
    assert output.out.splitlines() == ["fox-1.webp", "fox-2.webp", "fox-3.webp"]
    assert [line.split("  ")[2] for line in output.err.splitlines()[-3:]] == ["seed 7", "seed 8", "seed 9"]
    assert files() == ["fox-1.webp", "fox-2.webp", "fox-3.webp"]
    for number, seed in enumerate(("7", "8", "9"), start=1):
        assert Path(f"fox-{number}.webp").read_bytes() == alone(made, "fox.webp", seed=seed)


def test_several_pictures_without_a_name_are_named_by_their_seeds(
    made: Generate, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["txt2img-7.png", "txt2img-8.png"]
    assert made(num_images="2", seed="7") == 0
    assert capfd.readouterr().out.splitlines() == names
    assert files() == names
    for name, seed in zip(names, ("7", "8"), strict=True):
        assert Path(name).read_bytes() == alone(made, "fox.png", seed=seed)


def test_prompt_picture_and_file_can_be_pipes() -> None:
    drawn = run("-", "-o", "-", "--seed", "1", "--model", "fake", stdin="a füchs\n".encode())
    assert opened(drawn.stdout).text["parameters"].startswith("a füchs\nSteps: 1,")  # type: ignore[attr-defined]
    changed = run("a cat", "--image", "-", "-o", "-", "--model", "fake", stdin=drawn.stdout)
    assert "Denoising strength: 0.5" in opened(changed.stdout).text["parameters"]  # type: ignore[attr-defined]
    assert files() == []


def test_json_says_what_was_made_how_and_how_fast(made: Generate, capfd: pytest.CaptureFixture[str]) -> None:
    Path("in.png").write_bytes(png())
    assert made("a " * 90, image="in.png", num_images="2", output="a.png", as_json=True) == 0
    output = capfd.readouterr()
    answer = json.loads(output.out)
    seeds = [image.pop("seed") for image in answer["images"]]
    assert seeds[1] == seeds[0] + 1
    assert answer["images"] == [{"file": f"a-{number}.png", "media_type": "image/png"} for number in (1, 2)]
    for image, seed in zip(answer["images"], seeds, strict=True):
        of_this_seed = alone(made, "b.png", prompt="a " * 90, image="in.png", seed=str(seed))
        assert Path(image["file"]).read_bytes() == of_this_seed
    assert answer["parameters"]["prompt_truncated"] is True
    assert (answer["parameters"]["mode"], answer["parameters"]["effective_steps"]) == ("img2img", 1)
    assert set(answer["timings"]) == {"load_s", "decode_s", "inference_s", "encode_s"}
    assert "cut at 77 tokens" in output.err


def test_long_prompts_and_emphasis_are_options(made: Generate, capfd: pytest.CaptureFixture[str]) -> None:
    options = {"seed": "1", "prompt_mode": "chunked", "prompt_syntax": "webui"}
    assert made("a " * 90 + "(fox:1.3)", output="a.png", as_json=True, **options) == 0
    output = capfd.readouterr()
    parameters = json.loads(output.out)["parameters"]
    assert (parameters["prompt_tokens"], parameters["prompt_truncated"]) == (95, False)
    assert "cut" not in output.err
    assert made("(fox:11)", output="b.png", prompt_syntax="webui") == 2
    assert "PROMPT: A weight is from -10 to 10" in capfd.readouterr().err


# What is refused, before anything is loaded.


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_inference_steps": "5"}, "--num-inference-steps: Input should be less than or equal to 4"),
        ({"seed": "x"}, "--seed: Input should be a valid integer"),
        ({"width": "100"}, "--width: Input should be a multiple of 8"),
        ({"prompt": "a" * 2001}, "PROMPT: String should have at most 2000 characters"),
        ({"prompt": "-", "stdin": b"\xff"}, "PROMPT: Input should be a valid string"),
        ({"width": "2048", "height": "2048"}, "--width: width x height is 4194304 pixels, and at most 2097152"),
        ({"strength": "0.5"}, "--strength: This option needs --image"),
        ({"image": "in.png", "strength": "0.2"}, "--strength: int(num_inference_steps * strength) steps run"),
        ({"image": "in.png", "width": "512"}, "--height: Send both width and height, or neither."),
        ({"image": "none.png"}, "--image: none.png cannot be read: No such file or directory."),
        ({"image": "text.txt"}, "--image: The file is not a PNG, JPEG or WebP picture."),
        (
            {"image": "long.png"},
            "--image: The picture has 990x30 pixels, and an aspect beyond 32:1 cannot be kept. Send",
        ),
        ({"image": "-", "prompt": "-"}, "--image: Only one of prompt, picture and mask can be on stdin."),
        ({"output": "a.gif"}, "--output: a.gif does not end in .png, .webp, .jpg, .jpeg."),
        ({"output": ".png"}, "--output: .png is a suffix without a name."),
        ({"output": "none/a.png"}, "/none is not a writable folder."),
        ({"output": "loop.png"}, "--output: loop.png cannot be written: Too many levels of symbolic links."),
        ({"output": "f" * 252 + ".png"}, ".png cannot be written: File name too long."),
        ({"output": "folder.png"}, "--output: folder.png exists and is not a file."),
        ({"output": "-", "num_images": "2"}, "--output: Only a single picture can go to stdout."),
        ({"output": "-", "as_json": True}, "--json: The picture and JSON cannot both go to stdout."),
    ],
)
def test_what_is_refused_is_named_by_its_option_and_nothing_is_made(
    made: Generate,
    pipeline: GatedPipeline,
    capfd: pytest.CaptureFixture[str],
    options: dict[str, Any],
    reason: str,
) -> None:
    Path("in.png").write_bytes(png())
    Path("long.png").write_bytes(png((990, 30)))
    Path("text.txt").write_text("no picture")
    Path("folder.png").mkdir()
    Path("loop.png").symlink_to("loop.png")
    before = files()
    assert made(**options) == 2
    output = capfd.readouterr()
    (line,) = output.err.splitlines()
    assert reason in line
    assert output.out == ""
    assert pipeline.thread_ids == set()
    assert files() == before


def test_a_terminal_gets_no_picture() -> None:
    ours, theirs = pty.openpty()
    done = run("a fox", "-o", "-", "--model", "fake", stdout=theirs)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert b"--output: Stdout is a terminal" in done.stderr


# What fails.


def test_weights_that_are_not_here_end_it_with_3_and_how_to_get_them(
    made: Generate, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert made(settings=Settings(model="hf:stabilityai/sdxl-turbo", weights_dir=tmp_path)) == 3
    assert "Run `python -m app pull`" in capfd.readouterr().err.splitlines()[-1]


def test_a_device_that_is_not_there_ends_it_with_3(made: Generate, capfd: pytest.CaptureFixture[str]) -> None:
    assert made(settings=Settings(model="demo", device="npu")) == 3
    assert "TURBO_DEVICE=cpu" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (RuntimeError("Bad\nthing"), (1, "The pipeline failed on this request: RuntimeError: Bad.")),
        (DeviceOutOfMemoryError("The device is full."), (1, "The device is full.")),
        (
            DeviceLostError("The device failed (fire); the service is being replaced.", remedy="Put it out."),
            (3, "The device failed (fire). Put it out."),
        ),
    ],
)
def test_pictures_that_cannot_be_made_leave_no_file_and_one_line_that_says_why(
    made: Generate,
    pipeline: GatedPipeline,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    end: tuple[int, str],
) -> None:
    pipeline.error = error
    code = made(output="a.png")
    assert (code, capfd.readouterr().err.splitlines()[-1]) == end
    assert files() == []


def test_a_shortage_of_memory_that_passes_costs_nothing_but_a_second_try(
    made: Generate, pipeline: GatedPipeline
) -> None:
    pipeline.errors = [DeviceOutOfMemoryError("The device is full.")]
    assert made(num_images="2", seed="7", output="a.png") == 0
    assert [len(batch) for batch in pipeline.calls] == [2, 1, 1]
    for number, seed in enumerate(("7", "8"), start=1):
        assert Path(f"a-{number}.png").read_bytes() == alone(made, "b.png", seed=seed)


def test_all_runs_on_one_thread_and_nothing_is_made_but_what_was_asked_for(
    made: Generate, pipeline: GatedPipeline
) -> None:
    assert made("a fox") == 0
    assert pipeline.prompts == ["a fox"]
    assert len(pipeline.thread_ids) == 1


def test_a_device_that_hangs_ends_it_with_3(
    made: Generate, pipeline: GatedPipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline.gate.clear()
    assert made(settings=Settings(model="fake", hang_limit_s=0.2)) == 3
    assert "did not return within 0.4 s" in capfd.readouterr().err.splitlines()[-1]
    pipeline.gate.set()


def test_a_file_that_cannot_be_written_ends_it_with_1_and_leaves_nothing() -> None:
    bounded = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))"
    done = run("a fox", "--seed", "7", "--model", "fake", prelude=bounded)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "txt2img-7.png cannot be written: File too large."
    assert files() == []


@pytest.mark.parametrize(
    ("shell", "end"),
    [
        ("-o a.png >&- <&- 2>&-", (0, "")),
        ("-o a.png 2>/dev/full", (0, "a.png\n")),
        ("-o - >&-", (2, "--output: Stdout is closed.\n")),
        ("--image - -o a.png <&-", (2, "--image: Stdin is closed.\n")),
    ],
)
def test_a_stream_that_is_closed_or_full_costs_the_picture_only_where_it_is_to_go_or_come_that_way(
    shell: str, end: tuple[int, str]
) -> None:
    done = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -m app generate fox --model fake {shell}"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == end
    assert files() == (["a.png"] if done.returncode == 0 else [])


def test_a_picture_that_nobody_reads_is_an_error_and_a_name_that_nobody_reads_is_none() -> None:
    for arguments, code in (("-o -", 1), ("--seed 1", 0)):
        read_end, write_end = os.pipe()
        os.close(read_end)
        with os.fdopen(write_end, "wb") as nowhere:
            done = run("a fox", "--model", "fake", *arguments.split(), stdout=nowhere)
        assert done.returncode == code, done.stderr
        assert (b"stdout cannot be written: Broken pipe." in done.stderr) == (code == 1)
    assert files() == ["txt2img-1.png"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once_and_nothing_is_written(number: signal.Signals, code: int) -> None:
    arguments = ["generate", "a fox", "--model", "fake:60"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-m", "app", *arguments], env=environment, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"making"):
            break
    process.send_signal(number)
    assert process.wait(20) == code
    assert process.stderr.read() == b""
    process.stderr.close()
    assert files() == []


def test_a_signal_in_the_midst_of_writing_leaves_no_half_file() -> None:
    prelude = """
import signal
from pathlib import Path
Path.replace = lambda *_: print(len(list(Path().iterdir())), flush=True) or signal.raise_signal(signal.SIGINT)
"""
    done = run("a fox", "--model", "fake", prelude=prelude)
    assert done.returncode == 130
    assert b"\n2\n" in done.stderr  # the files that there were: the place that was taken, and what was written for it
    assert files() == []


def test_a_signal_that_is_ignored_stays_ignored_as_under_nohup() -> None:
    prelude = """
import signal
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_IGN)
replace = Path.replace
Path.replace = lambda *paths: signal.raise_signal(signal.SIGHUP) or replace(*paths)
"""
    assert run("a fox", "--model", "fake", "-o", "a.png", prelude=prelude).returncode == 0
    assert files() == ["a.png"]
