"""Actions on a result: variations, favourites, copies, files; and the page's address and keys."""

import base64
import io
import re
import zipfile

import pytest
from PIL import Image
from playwright.sync_api import expect

from app.main import create_app
from app.modes.img2img import Img2ImgParams
from app.settings import Settings
from tests.conftest import png, wait_until
from tests.playground.conftest import OpenPlayground, Visit
from tests.playground.test_mask import colour
from tests.playground.test_pictures import give, start_from
from tests.support.gated_pipeline import GatedPipeline

# Variations.


def vary(visit: Visit, how: str) -> None:
    visit["#variations summary"].click()
    with visit.page.expect_response(re.compile("txt2img|img2img")):
        visit[f"#{how}"].click()
    expect(visit["#stage:not(.busy) #pictures img"]).to_have_count(4)


def test_variations_of_the_chosen_picture_have_four_other_seeds(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#seed"].fill("7")
    visit["input[name=number][value='2']"].check()
    visit.make("an owl")
    visit["#pictures button"].nth(1).click()
    vary(visit, "four-seeds")
    last = visit.bodies[-1]
    assert (last["prompt"], last["seed"], last["num_images"]) == ("an owl", 9, 4)


def test_variations_by_strength_start_from_the_picture_a_notch_closer_or_further(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    visit.make("an owl")
    strengths = []
    for how in ("closer", "further", "further"):
        vary(visit, how)
        made = pipeline.calls[-1][0]
        assert isinstance(made, Img2ImgParams)
        strengths.append((made.num_inference_steps, made.strength))
    assert strengths == [(3, 0.34), (2, 0.5), (3, 0.67)]


# Views, copies and files.


def test_the_picture_can_be_viewed_in_full_copied_and_saved_with_all_others(open_playground: OpenPlayground) -> None:
    visit = open_playground(permissions=["clipboard-read", "clipboard-write"])
    visit.make("a fox, with: a scarf!")
    made = visit.download()
    assert re.fullmatch(r"a-fox-with-a-scarf-\d+\.png", made.suggested_filename)
    visit["#show-full"].click()
    expect(visit.page.get_by_role("img", name="a fox, with: a scarf!").last).to_be_in_viewport(ratio=1)
    visit.page.keyboard.press("Escape")
    visit["#copy-picture"].click()
    expect(visit["#toast"]).to_contain_text("The picture is copied.")
    copied: str = visit.page.evaluate(
        """async () => {
            const [item] = await navigator.clipboard.read();
            const bytes = new Uint8Array(await (await item.getType("image/png")).arrayBuffer());
            return btoa([...bytes].map((one) => String.fromCharCode(one)).join(""));
        }"""
    )
    with Image.open(io.BytesIO(base64.b64decode(copied))) as one, Image.open(made.path()) as other:
        assert one.convert("RGB").tobytes() == other.convert("RGB").tobytes()
    visit["input[name=number][value='2']"].check()
    expect(visit["#history li"]).to_have_count(2)
    visit.make("狐狸")
    expect(visit["#history li"]).to_have_count(3)
    with visit.page.expect_download() as download:
        visit["#save-all"].click()
    with zipfile.ZipFile(download.value.path()) as files:
        assert files.testzip() is None
        names = files.namelist()
    fox = "a-fox-with-a-scarf-N.png"
    again = "a-fox-with-a-scarf-N (N).png"  # the first of two pictures has the seed of the one before
    assert [re.sub(r"\d+", "N", name) for name in names] == ["狐狸-N.png", "狐狸-N.png", fox, fox, again]


def test_two_results_are_compared_by_a_slider(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit.make("an owl")
    owl = colour(visit, "#pictures img")
    visit["#compare"].click()
    expect(visit["#compare-view"]).to_be_hidden()  # there is nothing to compare with
    visit.make("a fox")
    expect(visit["#compare-view"]).to_be_visible()
    assert (colour(visit, "#before"), colour(visit, "#after") == owl) == (owl, False)


# Prompts.


def test_style_chips_join_and_leave_the_prompt_and_a_surprise_is_a_prompt(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#examples button"].nth(1).click()
    expect(visit["#examples"]).to_be_hidden()
    before = visit["#prompt"].input_value()
    chip = visit["#styles button[aria-pressed=false]"].first
    style = chip.get_attribute("data-style") or ""
    chip.click()
    visit.expect_shown(before + style)
    visit[f"#styles button[data-style='{style}']"].click()
    visit.expect_shown(before)
    visit["#surprise"].click()
    expect(visit["#prompt"]).not_to_have_value(before)
    visit.expect_shown(visit["#prompt"].input_value())


# The address.


def test_reload_and_a_shared_link_bring_prompt_seed_steps_size_and_mode_back(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#seed"].fill("5")
    visit["input[name=steps][value='3']"].check()
    visit["#size"].select_option("768x512")
    visit.make("a fox & a bee, 50% #1 狐狸")
    first = visit.download().path().read_bytes()
    visit.page.wait_for_url(re.compile("prompt=a.fox.*size=768x512"))
    link = visit.page.url
    visit.page.reload()
    visit.expect_shown("a fox & a bee, 50% #1 狐狸")
    assert visit.download().path().read_bytes() == first
    assert visit["input[name=steps]:checked"].input_value() == "3"
    visit[".tabs [data-source=draw]"].click()
    visit.page.wait_for_url(re.compile("mode=draw"))
    visit.page.goto("about:blank")
    visit.page.goto(visit.url + "/" + link[link.index("#") :].replace("mode=text", "mode=draw"))
    visit.expect_shown("a fox & a bee, 50% #1 狐狸")
    expect(visit["#drawing"]).to_be_visible()
    assert visit["#size"].input_value() == "768x512"


def test_an_address_that_makes_no_sense_is_an_empty_page(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit.page.goto(f"{visit.url}/#seed=-1&steps=99&size=1x1&mode=nothing&strength=x&prompt=")
    visit.page.reload()
    expect(visit["#empty"]).to_be_visible()
    expect(visit["#size"]).to_have_value("512x512")
    assert visit["input[name=steps]:checked"].input_value() == "1"
    assert visit.asked == []


def test_a_link_to_a_picture_s_mode_says_that_the_picture_is_missing(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit.page.goto("about:blank")
    visit.page.goto(f"{visit.url}/#prompt=an+owl&seed=3&mode=picture&strength=0.5&steps=2")
    expect(visit["#image-fault"]).to_contain_text("The link's picture is not part of the link.")


# Files that say how they were made.


def test_a_dropped_png_of_the_service_restores_how_it_was_made(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#seed"].fill("42")
    visit["input[name=steps][value='2']"].check()
    visit.make("an owl, on a branch")
    made = visit.download().path().read_bytes()
    visit["#seed"].fill("1")
    visit["input[name=steps][value='1']"].check()
    visit.make("a fox")
    give(visit, "drop", "old.png", made)
    visit.expect_shown("an owl, on a branch")
    assert visit.download().path().read_bytes() == made
    expect(visit["#toast"]).to_contain_text("Prompt and settings of old.png are restored.")
    with visit.page.expect_response("**/img2img"):
        visit["#toast-act"].click()
    expect(visit["#file-name"]).to_have_text("old.png")


# Keys.


def test_single_keys_press_buttons_and_are_listed_and_can_be_switched_off(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#prompt"].press_sequentially("?r3")  # in a text field, letters are letters
    visit.expect_shown("?r3")
    keyboard = visit.page.keyboard
    visit["#stage"].click()
    keyboard.press("?")
    expect(visit["#keys"]).to_contain_text("Keyboard shortcuts")
    expect(visit["#keys"]).to_contain_text("Eyedropper")
    keyboard.press("Escape")
    asked = len(visit.asked)
    with visit.page.expect_response("**/txt2img"):
        keyboard.press("r")
    assert len(visit.asked) == asked + 1
    keyboard.press("3")
    expect(visit["#drawing"]).to_be_visible()
    keyboard.press("e")
    expect(visit["[data-tool=eraser]"]).to_have_attribute("aria-pressed", "true")
    expect(visit["[data-tool=eraser]"]).to_have_attribute("aria-keyshortcuts", "e")
    keyboard.press("?")
    visit["#use-shortcuts"].uncheck()
    visit.page.reload()
    expect(visit["#examples"]).to_be_hidden()
    expect(visit["#drawing"]).to_be_visible()
    visit["#stage"].click()
    keyboard.press("1")
    expect(visit["#drawing"]).to_be_visible()


# Results that survive.

STORED_FAVOURITES = """() => new Promise((resolve) => {
    const opening = indexedDB.open("turbo-playground");
    opening.onsuccess = () => {
        const asking = opening.result.transaction("results").objectStore("results").getAll();
        asking.onsuccess = () => {
            opening.result.close();
            resolve(asking.result.filter(({ favourite }) => favourite).length);
        };
    };
})"""
"""The number of favourites in the browser's database. A write is complete before it is read."""


def test_history_and_favourites_survive_a_reload_only_by_choice_and_one_button_forgets(
    open_playground: OpenPlayground,
) -> None:
    visit = open_playground()
    visit.make("an owl")
    visit.page.wait_for_url(re.compile("prompt=an.owl"))
    visit.page.reload()
    visit.expect_shown("an owl")
    expect(visit["#history li"]).to_have_count(1)
    visit["#keep"].check()
    expect(visit["#kept"]).to_have_text(re.compile("1 stored, 1 of 100 MB"))
    start_from(visit, "red.png", png())
    expect(visit["#history li"]).to_have_count(2)
    visit.make("a fox")
    visit["#favourite"].click()
    expect(visit["#history .favourite"]).to_have_count(1)
    wait_until(lambda: visit.page.evaluate(STORED_FAVOURITES) == 1)
    visit.page.goto(f"{visit.url}/")
    visit.page.reload()
    expect(visit["#history li"]).to_have_count(3)
    expect(visit["#history .favourite"]).to_have_count(1)
    asked = len(visit.asked)
    visit["#history .favourite"].click()
    visit.expect_shown("a fox")
    expect(visit["#file-name"]).to_have_text("red.png")
    expect(visit["#favourite"]).to_have_attribute("aria-pressed", "true")
    assert len(visit.asked) == asked
    visit["#forget"].click()  # a favourite is asked for, and the browser here says no
    expect(visit["#history li"]).to_have_count(3)
    visit.page.on("dialog", lambda dialog: dialog.accept())
    visit["#forget"].click()
    expect(visit["#history li"]).to_have_count(0)
    expect(visit["#kept"]).to_have_text(re.compile("0 stored"))
    visit["#keep"].uncheck()
    expect(visit["#kept"]).to_have_text("Results are lost when the page closes.")  # the database is deleted
    visit.page.reload()
    expect(visit["#keep"]).not_to_be_checked()
    assert visit.page.evaluate("indexedDB.databases()") == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "CON"])
def test_a_file_s_name_comes_from_the_prompt_and_is_safe(open_playground: OpenPlayground, name: str) -> None:
    visit = open_playground()
    names = visit.page.evaluate(
        """async (name) => {
            const { fileName } = await import("/playground/service.js");
            return fileName(name, { seed: 5, blob: { type: "image/png" } });
        }""",
        name,
    )
    assert names == {"": "turbo-5.png", "../../etc/passwd": "etc-passwd-5.png", "CON": "con-5.png"}[name]
