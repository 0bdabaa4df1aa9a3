"""The mask brush: paint where a picture shall change, grow and feather it, invert it, and compare before and after."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, expect

from app.main import create_app
from app.modes.inpaint import InpaintParams
from app.settings import Settings
from tests.conftest import png
from tests.playground.conftest import OpenPlayground, Visit
from tests.playground.test_canvas import draw, pixel
from tests.support.gated_pipeline import GatedPipeline

NATURAL = "image => [image.naturalWidth, image.naturalHeight]"


def colour(visit: Visit, css: str) -> tuple[int, ...]:
    """The colour of a picture of the page, where the test has painted."""
    shown: list[int] = visit[css].evaluate(
        """async (image) => {
            await image.decode();
            const canvas = Object.assign(document.createElement("canvas"), { width: 512, height: 512 });
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            return [...context.getImageData(250, 100, 1, 1).data].slice(0, 3);
        }"""
    )
    return tuple(shown)


def masks_of(pipeline: GatedPipeline) -> list[np.ndarray]:
    made = [call[0] for call in pipeline.calls]
    return [np.asarray(one.mask) for one in made if isinstance(one, InpaintParams)]


def retouch(visit: Visit) -> None:
    visit.make("a fox")
    visit["#retouch"].click()
    expect(visit["#mask"]).to_be_visible()


def test_what_is_painted_is_drawn_anew_and_the_rest_stays(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    retouch(visit)
    before = np.asarray(Image.open(visit.download().path()).convert("RGB"))
    asked = len(visit.asked)
    visit["#feather"].fill("0")
    assert len(visit.asked) == asked  # nothing is painted yet
    visit["#brush-size"].fill("64")
    with visit.page.expect_response("**/inpaint"):
        draw(visit, (100, 100), (400, 100), canvas="#mask")
    expect(visit["#stage:not(.busy)"]).to_be_visible()
    mask = masks_of(pipeline)[-1]
    assert (mask[100, 250], mask[300, 250]) == (255, 0)
    (made,) = pipeline.calls[-1]
    assert isinstance(made, InpaintParams)
    assert (made.num_inference_steps, made.strength, made.area.feather) == (4, 1.0, 0)
    expect(visit["#made"]).to_contain_text("4 steps")
    after = np.asarray(Image.open(io.BytesIO(visit.download().path().read_bytes())).convert("RGB"))
    assert np.array_equal(after[200:], before[200:])
    assert not np.array_equal(after[80:120], before[80:120])


def test_the_mask_grows_inverts_and_is_shown_as_it_is_sent(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    retouch(visit)
    expect(visit["#undo"]).to_be_disabled()  # the picture under the mask cannot be undone
    visit["#brush-size"].fill("20")
    plain = pixel(visit, 250, 125, canvas="#mask")

    def mask_after(act: Callable[[], object]) -> np.ndarray:
        """Do something, and return the mask that was sent last."""
        with visit.page.expect_response("**/inpaint"):
            act()
        visit.page.wait_for_timeout(200)
        expect(visit["#stage:not(.busy)"]).to_be_visible()
        return masks_of(pipeline)[-1]

    drawn = mask_after(lambda: draw(visit, (100, 100), (400, 100), canvas="#mask"))
    assert pixel(visit, 250, 125, canvas="#mask") == plain
    grown = mask_after(lambda: visit["#grow"].fill("30"))
    assert pixel(visit, 250, 125, canvas="#mask") != plain
    mask_after(visit["#invert"].click)
    inverted = mask_after(lambda: visit["#grow"].fill("0"))
    columns = [np.flatnonzero(mask[:, 250]) for mask in (drawn, grown)]
    assert len(columns[0]) == pytest.approx(20, abs=12)
    assert len(columns[1]) == pytest.approx(80, abs=12)
    assert (inverted[100, 250], inverted[300, 250]) == (0, 255)
    visit["#clear"].click()
    assert pixel(visit, 250, 125, canvas="#mask") == plain


def test_a_mask_that_has_grown_comes_back_with_its_result_and_does_not_grow_again(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    retouch(visit)
    draw(visit, (100, 100), (400, 100), canvas="#mask")
    expect(visit["#history li"]).to_have_count(2)
    visit["#grow"].fill("30")
    expect(visit["#history li"]).to_have_count(3)
    sent = masks_of(pipeline)[-1]
    visit["#history button"].last.click()
    expect(visit["body"]).to_have_attribute("data-source", "text")
    visit["#history button"].first.click()
    expect(visit["body"]).to_have_attribute("data-source", "retouch")
    expect(visit["#grow"]).to_have_value("0")
    visit["#prompt"].press("Enter")
    expect(visit["#history li"]).to_have_count(4)
    assert np.array_equal(masks_of(pipeline)[-1], sent)


def test_original_and_result_are_compared_by_a_slider(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    retouch(visit)
    original = visit.download().path().read_bytes()
    with visit.page.expect_response("**/inpaint"):
        draw(visit, (100, 100), (400, 100), canvas="#mask")
    expect(visit["#stage:not(.busy)"]).to_be_visible()
    visit["#compare"].click()
    slider = visit.page.get_by_role("slider", name="Boundary between original and result")
    expect(slider).to_be_visible()
    assert visit["#before"].evaluate(NATURAL) == visit["#after"].evaluate(NATURAL) == [512, 512]
    assert colour(visit, "#before") == Image.open(io.BytesIO(original)).convert("RGB").getpixel((250, 100))
    assert colour(visit, "#after") != colour(visit, "#before")
    slider.fill("20")
    expect(visit["#after"]).to_have_css("clip-path", "inset(0px 0px 0px 20%)")
    visit["#compare"].click()
    expect(slider).to_be_hidden()


def test_a_picture_of_any_size_keeps_it_and_a_tall_one_has_a_canvas_that_fits(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    visit[".tabs [data-source=retouch]"].click()
    expect(visit["#invitation"]).to_contain_text("Open a picture first")
    visit.fill("a tower")
    with visit.page.expect_file_chooser() as chooser:
        visit["#import"].click()
    chooser.value.set_files(FilePayload(name="tall.png", mimeType="image/png", buffer=png((1000, 2000), "green")))
    expect(visit["#mask"]).to_have_attribute("height", "1024")
    with visit.page.expect_response("**/inpaint") as answer:
        draw(visit, (100, 100), (400, 100), canvas="#mask")
    assert answer.value.headers["x-image-size"] == "1000x2000"
