"""The canvas as a start picture: every tool, by mouse, finger, pen and keys, and pictures that follow each stroke."""

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, expect

from app.main import create_app
from app.modes.img2img import Img2ImgParams
from app.settings import Settings
from tests.conftest import png
from tests.playground.conftest import OpenPlayground, Visit
from tests.support.gated_pipeline import GatedPipeline

WHITE, INK, RED = (255, 255, 255), (0x22, 0x22, 0x22), (0xD6, 0x28, 0x28)


def open_canvas(visit: Visit) -> None:
    visit[".tabs [data-source=draw]"].click()
    expect(visit["#drawing"]).to_be_visible()


def start_drawing(visit: Visit, prompt: str = "a hill") -> None:
    visit.make(prompt)
    open_canvas(visit)


def draw(visit: Visit, *points: tuple[float, float], canvas: str = "#drawing") -> None:
    """Draw with the mouse, from point to point, in pixels of a canvas of 512 pixels a side."""
    box = visit.box(canvas)
    scale = box["width"] / 512
    at = [(box["x"] + x * scale, box["y"] + y * scale) for x, y in points]
    visit.page.mouse.move(*at[0])
    visit.page.mouse.down()
    for point in at[1:]:
        visit.page.mouse.move(*point, steps=4)
    visit.page.mouse.up()


def pixel(visit: Visit, x: int, y: int, canvas: str = "#drawing") -> tuple[int, ...]:
    """The colour that a canvas shows, once it shows what was done last."""
    shown: list[int] = visit.page.evaluate(
        """async ([canvas, x, y]) => {
            for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
            const context = document.querySelector(canvas).getContext("2d");
            return [...context.getImageData(x, y, 1, 1).data].slice(0, 3);
        }""",
        [canvas, x, y],
    )
    return tuple(shown)


def tool(visit: Visit, name: str) -> None:
    visit[f"[data-tool={name}]"].click()


def test_what_is_drawn_is_the_start_picture_and_an_empty_canvas_is_none(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    with visit.page.expect_response("**/txt2img"):
        start_drawing(visit)
    with visit.page.expect_response("**/img2img"):
        draw(visit, (100, 100), (400, 100))
    expect(visit["#stage:not(.busy)"]).to_be_visible()
    (made,) = pipeline.calls[-1]
    assert isinstance(made, Img2ImgParams)
    assert (made.width, made.height) == (512, 512)
    pixels = np.asarray(made.image).astype(int)
    assert abs(pixels[100, 250] - INK).max() < 16  # JPEG
    assert pixels[300, 250].min() > 240
    asked = len(visit.asked)
    with visit.page.expect_response("**/txt2img"):
        visit["#clear"].click()
    assert len(visit.asked) == asked + 1
    with visit.page.expect_response("**/img2img"):
        visit["#undo"].click()


def test_a_stroke_s_progress_is_sent_while_it_is_drawn_and_only_its_end_is_kept(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    start_drawing(visit)
    box = visit.box("#drawing")
    mouse = visit.page.mouse
    with visit.page.expect_response("**/img2img"):
        mouse.move(box["x"] + 20, box["y"] + 100)
        mouse.down()
        mouse.move(box["x"] + 100, box["y"] + 100, steps=3)
    with visit.page.expect_response("**/img2img"):
        mouse.move(box["x"] + 200, box["y"] + 100, steps=3)
    pipeline.close()
    mouse.move(box["x"] + 210, box["y"] + 100)
    assert pipeline.entered.acquire(timeout=10)
    before = len(pipeline.calls)
    mouse.move(box["x"] + 300, box["y"] + 100, steps=20)
    mouse.up()
    visit.page.wait_for_timeout(100)
    assert len(pipeline.calls) == before  # one in flight; the newest waits
    pipeline.gate.set()
    expect(visit["#history li"]).to_have_count(2)  # that of the text, and that of the whole stroke
    visit.page.wait_for_timeout(200)
    assert len(pipeline.calls) <= before + 2  # another may have waited in the queue: the device was mostly idle
    (made,) = pipeline.calls[-1]
    assert isinstance(made, Img2ImgParams)
    right = int(290 * 512 / box["width"])
    assert np.asarray(made.image)[int(100 * 512 / box["width"]), right].max() < 80


def test_every_tool_draws_what_it_says(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    open_canvas(visit)
    tool(visit, "rectangle")
    visit["[data-colour='#d62828']"].click()
    draw(visit, (50, 50), (200, 200))
    assert (pixel(visit, 60, 60), pixel(visit, 210, 60)) == (RED, WHITE)
    visit["#filled"].click()
    visit["[data-colour='#222222']"].click()
    tool(visit, "ellipse")
    draw(visit, (300, 50), (450, 200))
    assert (pixel(visit, 375, 50), pixel(visit, 375, 125)) == (INK, WHITE)
    tool(visit, "fill")
    visit["#colour"].fill("#2f7fd6")
    draw(visit, (375, 125))
    assert (pixel(visit, 375, 125), pixel(visit, 480, 125)) == ((0x2F, 0x7F, 0xD6), WHITE)
    tool(visit, "pick")
    draw(visit, (60, 60))
    expect(visit["#colour"]).to_have_value("#d62828")
    expect(visit["[data-colour='#d62828']"]).to_have_attribute("aria-pressed", "true")
    tool(visit, "line")
    draw(visit, (50, 300), (450, 300))
    assert pixel(visit, 250, 300) == RED
    tool(visit, "eraser")
    draw(visit, (250, 280), (250, 320))
    assert (pixel(visit, 250, 300), pixel(visit, 100, 300)) == (WHITE, RED)
    tool(visit, "brush")
    visit["#opacity"].fill("50")
    draw(visit, (50, 400), (200, 400), (50, 400))  # where it crosses itself it is no darker
    assert pixel(visit, 120, 400) == pytest.approx([(one + 255) / 2 for one in RED], abs=2)


def test_a_click_is_a_dot_and_a_fill_stays_when_the_canvas_shrinks(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    open_canvas(visit)
    draw(visit, (100, 100))
    assert (pixel(visit, 100, 100), pixel(visit, 100, 120)) == (INK, WHITE)
    tool(visit, "fill")
    visit["[data-colour='#d62828']"].click()
    draw(visit, (480, 480))
    visit["#size"].select_option("256x256")
    assert (pixel(visit, 200, 200), pixel(visit, 100, 100)) == (RED, INK)


def test_a_drawing_comes_back_at_its_own_size_and_quick_clicks_do_not_mix_two_results(
    open_playground: OpenPlayground,
) -> None:
    visit = open_playground()
    start_drawing(visit)
    draw(visit, (100, 100), (400, 100))
    expect(visit["#history li"]).to_have_count(2)
    visit["#size"].select_option("768x512")
    visit[".tabs [data-source=text]"].click()
    visit.make("an owl")
    drawn, owl = visit["#history button"].nth(-2), visit["#history button[title='an owl']"]
    drawn.click()
    owl.click()
    expect(visit["body"]).to_have_attribute("data-source", "text")
    expect(visit["#prompt"]).to_have_value("an owl")
    visit.expect_shown("an owl")
    drawn.click()
    expect(visit["body"]).to_have_attribute("data-source", "draw")
    expect(visit["#drawing"]).to_have_attribute("width", "512")
    assert pixel(visit, 250, 100) == pytest.approx(INK, abs=16)
    assert pixel(visit, 250, 300) == WHITE


def test_undo_and_redo_reach_back_to_an_empty_canvas(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    open_canvas(visit)
    expect(visit["#undo"]).to_be_disabled()
    draw(visit, (100, 100), (400, 100))
    draw(visit, (100, 200), (400, 200))
    visit["#drawing"].press("Control+z")
    assert (pixel(visit, 250, 100), pixel(visit, 250, 200)) == (INK, WHITE)
    visit["#undo"].click()
    assert pixel(visit, 250, 100) == WHITE
    expect(visit["#undo"]).to_be_disabled()
    visit["#drawing"].press("Control+Shift+z")
    visit["#redo"].click()
    assert (pixel(visit, 250, 100), pixel(visit, 250, 200)) == (INK, INK)
    expect(visit["#redo"]).to_be_disabled()


def test_a_picture_can_be_laid_under_the_drawing_dragged_and_scaled(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    open_canvas(visit)
    with visit.page.expect_file_chooser() as chooser:
        visit["#import"].click()
    chooser.value.set_files(FilePayload(name="green.png", mimeType="image/png", buffer=png((64, 32), "green")))
    expect(visit["#undo"]).to_be_enabled()
    assert (pixel(visit, 256, 256), pixel(visit, 256, 20)) == ((0, 128, 0), WHITE)  # as wide as the canvas
    tool(visit, "move")
    draw(visit, (256, 256), (256, 128))
    assert (pixel(visit, 256, 20), pixel(visit, 256, 300)) == ((0, 128, 0), WHITE)
    box = visit.box("#drawing")
    visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["width"] / 4)
    for _ in range(10):
        visit.page.mouse.wheel(0, 100)
    assert (pixel(visit, 256, 128), pixel(visit, 20, 128)) == ((0, 128, 0), WHITE)
    tool(visit, "eraser")  # it erases ink, and leaves the picture
    draw(visit, (200, 128), (300, 128))
    assert pixel(visit, 256, 128) == (0, 128, 0)


def test_start_from_this_puts_a_result_onto_the_canvas(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    start_drawing(visit)
    draw(visit, (50, 100), (400, 100))
    expect(visit["#history li"]).to_have_count(2)
    made = visit.download().path().read_bytes()
    visit["#reuse"].click()
    expect(visit["#history li"]).to_have_count(3)
    expected = Image.open(io.BytesIO(made)).convert("RGB").getpixel((100, 100))
    assert pixel(visit, 100, 100) == expected  # the stroke is part of the picture, and not over it
    visit["#undo"].click()
    assert pixel(visit, 100, 100) == INK


def test_the_canvas_can_be_drawn_on_by_keys_and_says_what_the_pen_does(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    open_canvas(visit)
    canvas = visit["#drawing"]
    expect(canvas).to_have_accessible_name("Canvas")
    expect(canvas).to_have_accessible_description(re.compile("arrow keys move the pen.*Space puts the pen down"))
    canvas.focus()
    keyboard = visit.page.keyboard
    keyboard.press("Space")
    expect(visit["#canvas-said"]).to_have_text("Pen down at 256, 256.")
    for _ in range(3):
        keyboard.press("Shift+ArrowRight")
    keyboard.press("Alt+ArrowDown")
    expect(visit["#canvas-said"]).to_have_text("352, 257")
    keyboard.press("Space")
    expect(visit["#canvas-said"]).to_have_text("Pen up at 352, 257.")
    visit["#prompt"].focus()  # the pen's mark goes
    assert (pixel(visit, 300, 256), pixel(visit, 200, 256)) == (INK, WHITE)
    canvas.focus()
    keyboard.press("Space")
    keyboard.press("Shift+ArrowDown")
    keyboard.press("Escape")
    visit["#prompt"].focus()
    assert pixel(visit, 352, 285) == WHITE


def point(visit: Visit, kind: str, x: float, y: float, **about: Any) -> None:
    """Dispatch a pointer's event at a point of the canvas, in pixels of the canvas."""
    visit.page.evaluate(
        """([kind, x, y, about]) => {
            const canvas = document.querySelector("#drawing");
            const box = canvas.getBoundingClientRect();
            canvas.setPointerCapture = () => {};
            canvas.dispatchEvent(new PointerEvent(kind, {
                clientX: box.left + x * box.width / 512, clientY: box.top + y * box.width / 512, bubbles: true,
                cancelable: true, ...about,
            }));
        }""",
        [kind, x, y, about],
    )


def test_a_pen_s_pressure_is_the_width_of_its_line(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    open_canvas(visit)
    visit["#brush-size"].fill("40")
    for y, pressure in ((100, 0.1), (300, 1.0)):
        pen = {"pointerId": 7, "pointerType": "pen", "pressure": pressure}
        point(visit, "pointerdown", 100, y, **pen)
        for x in (200, 300, 400):
            point(visit, "pointermove", x, y, **pen)
        point(visit, "pointerup", 400, y, **pen)
    assert (pixel(visit, 250, 100), pixel(visit, 250, 112)) == (INK, WHITE)
    assert (pixel(visit, 250, 300), pixel(visit, 250, 312)) == (INK, INK)


def width_of(visit: Visit) -> float:
    return visit.box("#drawing")["width"]


def test_one_finger_draws_and_two_zoom_the_view(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    open_canvas(visit)
    first, second = ({"pointerId": number, "pointerType": "touch"} for number in (1, 2))
    point(visit, "pointerdown", 100, 100, **first)
    point(visit, "pointermove", 300, 100, **first)
    point(visit, "pointerup", 300, 100, **first)
    assert pixel(visit, 200, 100) == INK
    width = width_of(visit)
    point(visit, "pointerdown", 200, 250, **first)
    point(visit, "pointerdown", 300, 250, **second)
    point(visit, "pointermove", 400, 250, **second)
    point(visit, "pointerup", 400, 250, **second)
    point(visit, "pointerup", 200, 250, **first)
    assert width_of(visit) > 1.5 * width
    visit["#zoom-fit"].click()
    assert width_of(visit) == pytest.approx(width, abs=1)
    visit["#undo"].click()
    assert pixel(visit, 200, 100) == WHITE  # two fingers left no stroke


def test_in_the_overlay_the_canvas_lies_over_its_result(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    start_drawing(visit)
    draw(visit, (100, 100), (400, 100))
    visit["button[data-layout=overlay]"].click()
    canvas, picture = visit.box("#drawing"), visit.box("#pictures img")
    assert all(abs(canvas[side] - picture[side]) < 1.5 for side in ("x", "y", "width", "height"))
    draw(visit, (100, 300), (400, 300))
    assert pixel(visit, 250, 300) == INK
    visit.page.reload()
    visit.expect_shown("a hill")
    expect(visit["body"]).to_have_attribute("data-layout", "overlay")


def test_the_drawing_has_the_pictures_size_and_can_be_saved(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    open_canvas(visit)
    visit["#size"].select_option("768x512")
    draw(visit, (100, 100), (300, 100))
    with visit.page.expect_download() as download:
        visit["#save-drawing"].click()
    assert download.value.suggested_filename == "drawing.jpg"
    with Image.open(download.value.path()) as saved:
        assert saved.size == (768, 512)
