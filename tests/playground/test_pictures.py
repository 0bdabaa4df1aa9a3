"""Pictures: start from an upload, make several, show one again, and copy the code that makes them."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from app.main import create_app
from app.modes.img2img import Img2ImgParams
from app.pipelines.base import effective_steps
from app.settings import Settings
from tests.conftest import opened, png, program
from tests.playground.conftest import OpenPlayground, Visit
from tests.support.gated_pipeline import GatedPipeline
from tests.support.uploads import animated


def start_from(visit: Visit, name: str, data: bytes) -> None:
    visit["#file"].set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def give(visit: Visit, event: str, name: str, data: bytes) -> None:
    """Drop or paste a file."""
    visit.page.evaluate(
        """([event, name, data]) => {
            const files = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            files.items.add(new File([bytes], name, { type: "image/png" }));
            const about = { bubbles: true, cancelable: true, dataTransfer: files, clipboardData: files };
            const kind = event === "paste" ? ClipboardEvent : DragEvent;
            document.body.dispatchEvent(new kind(event, about));
        }""",
        [event, name, base64.b64encode(data).decode()],
    )


# Image to image.


def test_a_picture_starts_from_a_file_and_without_it_from_text_again(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    visit.make("an ant")
    with visit.page.expect_response("**/img2img"):
        start_from(visit, "red.png", png((96, 64)))
    expect(visit["#effective"]).to_have_text("int(2 × 0.50) = 1 step runs.")
    expect(visit["#file-name"]).to_have_text("red.png")
    (made,) = pipeline.calls[-1]
    assert isinstance(made, Img2ImgParams)
    assert (made.prompt, made.strength, made.num_inference_steps) == ("an ant", 0.5, 2)
    assert made.width / made.height == pytest.approx(96 / 64, rel=0.02)
    assert made.image.getpixel((0, 0)) == (255, 0, 0)
    with visit.page.expect_response("**/txt2img"):
        visit["#remove"].click()
    expect(visit["#strength"]).to_be_hidden()


def test_a_text_that_is_pasted_with_its_picture_stays_a_text_in_the_prompt(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    taken = visit.page.evaluate(
        """() => {
            const copied = new DataTransfer();
            copied.items.add(new File(["a cell"], "cell.png", { type: "image/png" }));
            copied.setData("text/plain", "a cell");
            const paste = (css) => document.querySelector(css).dispatchEvent(
                new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: copied }),
            );
            return [!paste("#prompt"), !paste("#stage")];
        }"""
    )
    assert taken == [False, True]


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_starts_from_what_is_dropped_or_pasted(open_playground: OpenPlayground, event: str) -> None:
    visit = open_playground()
    if event == "drop":
        give(visit, "dragover", "green.png", png())
        expect(visit["#veil"]).to_be_visible()
    with visit.page.expect_response("**/img2img") as answer:
        give(visit, event, "green.png", png((64, 64), "green"))
    assert answer.value.headers["x-image-size"] == "512x512"
    expect(visit["#veil"]).to_be_hidden()
    expect(visit["#file-name"]).to_have_text("green.png")


def test_a_picture_starts_from_the_last_result(open_playground: OpenPlayground, pipeline: GatedPipeline) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    visit.make("an ant")
    download = visit.download()
    with visit.page.expect_response("**/img2img"):
        visit["#reuse"].click()
    expect(visit["#file-name"]).to_have_text(download.suggested_filename)
    (made,) = pipeline.calls[-1]
    assert isinstance(made, Img2ImgParams)
    assert np.array_equal(np.asarray(made.image), np.asarray(opened(download.path().read_bytes())))


def test_every_strength_that_can_be_dragged_runs_with_as_many_steps_as_it_needs(
    open_playground: OpenPlayground,
) -> None:
    visit = open_playground()
    start_from(visit, "red.png", png())
    visit.make("an ant")
    steps = visit["input[name=steps]:checked"]
    shown = []
    for stop in range(6):
        visit["#strength"].fill(str(stop))
        shown.append((visit["#strength-value"].inner_text(), steps.input_value(), visit["#effective"].inner_text()))
    assert shown == [
        ("25 %", "4", "int(4 × 0.25) = 1 step runs."),
        ("34 %", "3", "int(3 × 0.34) = 1 step runs."),
        ("50 %", "2", "int(2 × 0.50) = 1 step runs."),
        ("67 %", "3", "int(3 × 0.67) = 2 steps run."),
        ("75 %", "4", "int(4 × 0.75) = 3 steps run."),
        ("100 %", "1", "int(1 × 1.00) = 1 step runs."),
    ]
    expect(visit["#strength"]).not_to_have_attribute("aria-invalid", "true")
    visit["#strength"].fill("0")
    visit["input[name=steps][value='1']"].check()  # the control that was moved last decides
    expect(visit["#effective"]).to_have_text("int(1 × 1.00) = 1 step runs.")
    visit["input[name=steps][value='4']"].check()
    assert visit["#strength"].get_attribute("max") == "3"  # a third of four steps would draw what a quarter draws


def test_the_strengths_offered_are_all_that_differ_and_the_service_runs_them(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    offered = visit.page.evaluate(
        "async () => { const { stopsOf } = await import('/playground/strength.js'); return [1, 2, 3, 4].map(stopsOf); }"
    )
    for wanted, stops in enumerate(offered, start=1):
        runs = [(effective_steps(stop["steps"], stop["strength"]), stop["steps"]) for stop in stops]
        assert all(run >= 1 and steps >= wanted for run, steps in runs)
        shares = [run / steps for run, steps in runs]
        assert shares == sorted(set(shares))
        possible = {run / steps for steps in range(wanted, 5) for run in range(1, steps + 1)}
        assert set(shares) == possible


def test_a_file_that_cannot_be_taken_is_explained_and_not_sent(open_playground: OpenPlayground) -> None:
    visit = open_playground(create_app(Settings(model="fake", max_body_bytes=20_000, max_upload_pixels=10_000)))
    visit.make("an ant")
    fault = visit["#image-fault"]
    start_from(visit, "letter.png", b"Dear Sir or Madam")
    expect(fault).to_have_text("letter.png is not a PNG, JPEG or WebP picture.")
    start_from(visit, "large.png", png() + bytes(20_000))
    expect(fault).to_have_text("large.png has 21 kB; the service takes up to 15 kB.")
    start_from(visit, "wide.png", png((200, 100)))
    expect(fault).to_have_text("wide.png has 20,000 pixels; the service takes up to 10,000.")
    start_from(visit, "torn.png", png()[:40])
    expect(fault).to_have_text("torn.png cannot be opened; it seems to be damaged.")
    with visit.page.expect_response("**/img2img"):
        start_from(visit, "red.png", png())
    expect(fault).to_be_empty()
    assert len(visit.asked) == 2


# Several pictures, larger pictures, and pictures shown again.


def test_several_pictures_come_at_once_and_each_can_be_chosen(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#seed"].fill("7")
    visit["input[name=number][value='4']"].check()
    visit["input[name=steps][value='3']"].check()
    visit["#size"].select_option("768x512")
    visit.make("an ant")
    expect(visit["#pictures img"]).to_have_count(4)
    visit["#pictures button"].nth(2).click()
    expect(visit["#made"]).to_have_text("seed 9 · 3 steps · 768×512")
    expect(visit["#seed"]).to_have_value("9")  # the next prompt goes on from it
    download = visit.download()
    assert download.suggested_filename == "an-ant-9.png"
    alone = {"prompt": "an ant", "seed": 9, "num_inference_steps": 3, "width": 768, "height": 512}
    same = httpx.post(f"{visit.url}/txt2img", json=alone)
    assert download.path().read_bytes() == same.content


def test_sizes_that_the_service_does_not_make_are_not_offered(open_playground: OpenPlayground) -> None:
    visit = open_playground(create_app(Settings(model="fake", max_pixels=512 * 768)))
    sizes = visit["#size option"].evaluate_all("options => options.map((option) => option.value)")
    assert sizes == ["256x256", "512x512", "512x768", "768x512"]


def test_a_result_of_before_comes_again_with_its_parameters_and_no_request(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#seed"].fill("1")
    start_from(visit, "red.png", png())
    visit["#strength"].fill("3")
    visit["#size"].select_option("256x256")
    visit.make("first")
    first = visit.download().path().read_bytes()
    visit["#remove"].click()
    visit["#lock"].click()
    visit["input[name=steps][value='4']"].check()
    visit.make("second")
    asked = len(visit.asked)
    visit.page.get_by_role("button", name="Show again: first, seed 1").last.click()  # the oldest picture
    visit.expect_shown("first")
    assert visit.download().path().read_bytes() == first
    assert visit["#prompt"].input_value() == "first"
    assert visit["#seed"].input_value() == "1"
    expect(visit["#strength-value"]).to_have_text("67 %")
    assert visit["#size"].input_value() == "256x256"
    assert visit["input[name=steps]:checked"].input_value() == "3"
    expect(visit["#chosen"]).to_be_visible()
    expect(visit["#file-name"]).to_have_text("red.png")
    expect(visit["#lock"]).to_have_attribute("aria-pressed", "true")
    assert len(visit.asked) == asked


def test_the_last_thirty_results_are_kept(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#size"].select_option("256x256")
    for number in range(32):
        visit.make(f"picture {number}")
    expect(visit["#history li"]).to_have_count(30)
    expect(visit["#history button"].first).to_have_attribute("title", "picture 31")
    expect(visit["#history button"].last).to_have_attribute("title", "picture 2")


# The code that the page offers to copy.

AWKWARD = 'it\'s a "fox" \\ $HOME `x` <é> 狐狸 🦊'
INTERPRETERS = {"curl": "sh", "python": sys.executable, "javascript": "node"}


def run_copied(visit: Visit, language: str, folder: Path) -> list[bytes]:
    """Copy the page's code, run it in a folder, and return the new files."""
    visit["#show-code"].click()
    visit[f"[data-code={language}]"].click()
    expect(visit[f"[data-code={language}]"]).to_have_attribute("aria-pressed", "true")
    visit["#copy"].click()
    expect(visit["#copied"]).to_have_text("Copied.")
    code: str = visit.page.evaluate("navigator.clipboard.readText()")
    visit["#code [data-close]"].click()
    program("curl" if language == "curl" else INTERPRETERS[language])
    script = folder / ("picture.mjs" if language == "javascript" else "picture.txt")
    script.write_text(code.replace("YOUR_API_KEY", "0123456789abcdef"), encoding="utf-8")
    before = set(folder.iterdir())
    ran = subprocess.run(
        [INTERPRETERS[language], script.name], cwd=folder, capture_output=True, timeout=60, env=os.environ, check=False
    )
    assert ran.returncode == 0, (code, ran.stderr.decode())
    return [file.read_bytes() for file in sorted(set(folder.iterdir()) - before)]


@pytest.mark.parametrize("language", INTERPRETERS)
def test_the_copied_code_runs_and_gets_the_same_picture(
    open_playground: OpenPlayground, tmp_path: Path, language: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("page: 0123456789abcdef\n")
    app = create_app(Settings(model="fake", api_keys_file=keys))
    visit = open_playground(app, permissions=["clipboard-read", "clipboard-write"])
    visit["#key"].fill("0123456789abcdef")
    visit["#seed"].fill("5")

    from_text = tmp_path / "text"
    from_text.mkdir()
    visit.make(AWKWARD)
    assert run_copied(visit, language, from_text) == [visit.download().path().read_bytes()]

    from_image = tmp_path / "image"
    from_image.mkdir()
    (from_image / "a; 'red', one.png").write_bytes(png())
    start_from(visit, "a; 'red', one.png", png())
    visit.make("@a red one; type=text/plain")
    assert run_copied(visit, language, from_image) == [visit.download().path().read_bytes()]

    from_result = tmp_path / "result"
    from_result.mkdir()
    visit.download().save_as(from_result / "a-red-one-type-text-plain-5.png")
    with visit.page.expect_response("**/img2img"):
        visit["#reuse"].click()
    visit["input[name=number][value='2']"].check()
    expect(visit["#stage:not(.busy) #pictures img"]).to_have_count(2)
    files = run_copied(visit, language, from_result)
    if language == "curl":
        files = [base64.b64decode(image["b64"]) for image in json.loads(files[0])["images"]]
    assert len(files) == 2
    assert files[0] == visit.download().path().read_bytes()


def test_where_there_is_no_clipboard_the_code_is_selected(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit.make("an ant")
    visit.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    visit["#show-code"].click()
    expect(visit["#code-text"]).to_contain_text("curl")
    visit["#copy"].click()
    expect(visit["#copied"]).to_contain_text("Ctrl+C")
    assert visit.page.evaluate("getSelection().toString()") == visit["#code-text"].inner_text()


def test_what_the_service_says_of_an_uploaded_picture_stands_beside_it(open_playground: OpenPlayground) -> None:
    visit = open_playground(complaints="422")
    start_from(visit, "moving.png", next(animated()).data)
    expect(visit["#image-fault"]).to_contain_text("animated")
    expect(visit["#notice"]).to_contain_text("Please look at the marked field.")
