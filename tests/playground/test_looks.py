"""The page in both languages and colour schemes, on a phone, by keyboard, and with a screen reader."""

import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from app.api.playground import page as playground
from tests.conftest import png
from tests.playground.conftest import OpenPlayground, Visit

STATIC = Path(playground.__file__).parent / "static"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}
DESK = {"viewport": {"width": 1280, "height": 800}}


def texts(visit: Visit) -> dict[str, dict[str, str]]:
    read: dict[str, dict[str, str]] = visit.page.evaluate(
        "async () => (await import('/playground/strings.js')).STRINGS"
    )
    return read


def test_both_languages_have_the_same_texts_with_the_same_values_and_all_are_used(
    open_playground: OpenPlayground,
) -> None:
    visit = open_playground()
    strings = texts(visit)
    assert set(strings) == {"en", "zh"}
    assert list(strings["en"]) == list(strings["zh"])
    for key, text in strings["en"].items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", strings["zh"][key])), key
    page = visit.page.request.get(f"{visit.url}/").text()
    named = set(re.findall(r'data-(?:text|label|placeholder|region)="(\w+)"', page))
    assert named <= set(strings["en"])
    others = [source.read_text(encoding="utf-8") for source in STATIC.glob("*.js") if source.name != "strings.js"]
    assert set(strings["en"]) - named <= {"title", *re.findall(r'"(\w+)"', " ".join(others))}


def test_the_language_is_the_browser_s_until_another_is_chosen(open_playground: OpenPlayground) -> None:
    visit = open_playground(locale="zh-CN")
    expect(visit["html"]).to_have_attribute("lang", "zh-CN")
    expect(visit["#download"]).to_have_text("下载")
    visit.make("a fox")
    expect(visit["#tokens"]).to_have_text("4 / 77 个词元")
    visit["#language"].click()
    expect(visit["html"]).to_have_attribute("lang", "en")
    expect(visit["#tokens"]).to_have_text("4 of 77 tokens")
    expect(visit["#prompt"]).to_have_attribute("placeholder", "Describe a picture")
    visit.page.reload()
    expect(visit["html"]).to_have_attribute("lang", "en")
    expect(visit["#empty"]).to_contain_text("Type, and the picture follows.")


def test_light_and_dark_are_the_system_s_until_switched(open_playground: OpenPlayground) -> None:
    visit = open_playground(color_scheme="dark")
    dark, light = "rgb(19, 18, 17)", "rgb(246, 244, 240)"
    expect(visit["html"]).to_have_css("background-color", dark)
    visit.page.emulate_media(color_scheme="light")
    expect(visit["html"]).to_have_css("background-color", light)
    visit["#theme"].click()
    expect(visit["html"]).to_have_css("background-color", dark)
    visit.page.reload()
    expect(visit["html"]).to_have_css("background-color", dark)
    visit["#theme"].click()
    expect(visit["html"]).to_have_css("background-color", light)


def full(visit: Visit) -> None:
    """Show everything that the page can show at once."""
    visit["#file"].set_input_files({"name": "a-name-" * 12 + ".png", "mimeType": "image/png", "buffer": png()})
    visit["input[name=number][value='4']"].check()
    visit.make("word " * 100 + "Donaudampfschifffahrtsgesellschaft" * 6)
    visit["#strength"].fill("0.1")
    visit["#seed"].fill("x")
    expect(visit["#seed-fault"]).not_to_be_empty()


@pytest.mark.parametrize("locale", ["en", "zh"])
def test_a_phone_need_not_scroll_sideways(open_playground: OpenPlayground, locale: str) -> None:
    visit = open_playground(locale=locale, **PHONE)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
    full(visit)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 360


def test_on_a_desk_all_is_one_screen_and_the_picture_is_the_largest_thing_on_it(
    open_playground: OpenPlayground,
) -> None:
    visit = open_playground(**DESK)
    visit.make("a fox")
    assert visit.page.evaluate("document.documentElement.scrollHeight") == 800
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 1280
    picture = visit["#pictures img"].bounding_box()
    assert picture
    assert picture["width"] == picture["height"] > 450


def test_whatever_the_window_and_the_letters_nothing_lies_over_anything_else(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit.make(" ".join(["word"] * 90))
    letters = visit.page.context.new_cdp_session(visit.page)
    for size in (16, 32):
        letters.send("Page.setFontSizes", {"fontSizes": {"standard": size}})
        for width, height in ((1366, 650), (1024, 700), (901, 640), (1920, 1080), (740, 360), (360, 740)):
            visit.page.set_viewport_size({"width": width, "height": height})
            over = visit.page.evaluate(
                """() => {
                    const parts = ".ask #stage #actions #panel #meter footer".split(" ");
                    const boxes = parts.map((css) => [css, document.querySelector(css).getBoundingClientRect()]);
                    return boxes.flatMap(([css, one], index) => boxes.slice(index + 1).filter(([, other]) =>
                        one.left < other.right && other.left < one.right &&
                        one.top < other.bottom && other.top < one.bottom
                    ).map(([other]) => `${css} ${other}`));
                }"""
            )
            assert over == [], (width, height, size)
            assert visit.page.evaluate("document.documentElement.scrollWidth") == width
            visit["#download"].click(trial=True)


def test_the_page_works_by_keyboard(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    keyboard = visit.page.keyboard
    expect(visit.page.get_by_role("textbox", name="Prompt")).to_be_focused()
    keyboard.type("a fox")
    visit.expect_shown("a fox")
    reached = []
    while "seed" not in reached:
        keyboard.press("Tab")
        focused = visit.page.evaluate("[document.activeElement.id, document.activeElement.matches(':focus-visible')]")
        assert focused[1]
        reached.append(focused[0])
        if focused[0] == "show-code":
            keyboard.press("Enter")
            expect(visit["#code"]).to_be_visible()
            keyboard.press("Escape")
            expect(visit["#show-code"]).to_be_focused()
    assert [name for name in reached if name] == ["download", "reuse", "show-code", "file", "size", "seed"]
    assert len(reached) < 20


def test_in_the_system_s_own_colours_what_is_chosen_is_still_seen(open_playground: OpenPlayground) -> None:
    visit = open_playground(forced_colors="active")
    visit["input[name=number][value='2']"].check()
    visit.make("a")
    visit.make("b")

    def look(css: str, pseudo: str = "") -> str:
        """The outline and background of an element. Forced colours remove shadows."""
        drawn: str = visit.page.evaluate(
            """([css, pseudo]) => {
                const style = getComputedStyle(document.querySelector(css), pseudo);
                return [style.outlineStyle, style.backgroundColor].join(" ");
            }""",
            [css, pseudo],
        )
        return drawn

    assert look("#pictures button:first-child") != look("#pictures button:last-child")
    assert look("#history li:first-child button") != look("#history li:last-child button")
    assert look("[name=number][value='2'] + span") != look("[name=number][value='1'] + span")
    kept, blurred = look("#lock"), look(".prompt")
    ready = look("#service", "::before")
    visit["#lock"].click()
    assert look("#lock") != kept
    visit["#seed"].focus()
    assert look(".prompt") != blurred
    visit["#service"].evaluate("line => { line.dataset.status = 'draining'; }")
    assert look("#service", "::before") != ready
    assert len({look(f".share .{stage}") for stage in ("queue", "inference", "encode", "rest")}) == 4


def test_screen_readers_are_told_of_a_picture_once_nothing_changes_any_more(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit.page.clock.install()
    visit.make("a")
    visit.make("a fox")
    expect(visit["#spoken"]).to_be_empty()
    visit.page.clock.fast_forward(1000)
    expect(visit["#spoken"]).to_have_text("Picture ready. a fox")
    expect(visit["#spoken"]).to_have_attribute("role", "status")


def violations(visit: Visit) -> list[Any]:
    return [
        (found["id"], found["impact"], [node["html"] for node in found["nodes"]])
        for found in Axe().run(visit.page).response["violations"]
    ]


@pytest.mark.parametrize(
    "context",
    [{**DESK, "color_scheme": "light"}, {**DESK, "color_scheme": "dark"}, {**PHONE, "locale": "zh-CN"}],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_no_fault(open_playground: OpenPlayground, context: dict[str, Any]) -> None:
    visit = open_playground(bypass_csp=True, reduced_motion="reduce", **context)  # the policy would block axe
    assert violations(visit) == []
    full(visit)
    visit.page.context.set_offline(True)
    assert violations(visit) == []
    visit["#show-code"].click()
    assert violations(visit) == []
