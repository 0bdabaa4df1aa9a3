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
    served = {language: visit.page.request.get(f"{visit.url}/playground/{language}.json") for language in ("en", "zh")}
    return {language: answer.json() for language, answer in served.items()}


def test_both_languages_have_the_same_texts_with_the_same_values_and_all_are_used(
    open_playground: OpenPlayground,
) -> None:
    visit = open_playground()
    strings = texts(visit)
    assert list(strings["en"]) == list(strings["zh"])
    for key, text in strings["en"].items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", strings["zh"][key])), key
    page = visit.page.request.get(f"{visit.url}/").text()
    named = set(re.findall(r'data-(?:text|label|placeholder|region)="(\w+)"', page))
    assert named <= set(strings["en"])
    others = [source.read_text(encoding="utf-8") for source in STATIC.glob("*.js")]
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


def test_the_page_has_its_texts_before_any_script_runs(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    for languages, said in (("de, zh", "Type, and"), ("zh-CN, en", "输入文字"), ("", "Type, and")):
        answer = visit.page.request.get(f"{visit.url}/", headers={"Accept-Language": languages})
        assert said in answer.text()
        assert "Accept-Language" in answer.headers["vary"]
    browser = visit.page.context.browser
    assert browser
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{visit.url}/")
        expect(page.locator("#invitation")).to_have_text("Type, and the picture follows.")
        expect(page.locator("#download")).to_have_text("Download")


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
    expect(visit["#examples button"].first).to_be_visible()
    visit["#theme"].click()
    expect(visit["html"]).to_have_css("background-color", light)


def full(visit: Visit) -> None:
    """Show everything that the page can show at once."""
    if visit["#open-settings"].is_visible():
        visit["#open-settings"].click()
    visit["#file"].set_input_files({"name": "a-name-" * 12 + ".png", "mimeType": "image/png", "buffer": png()})
    visit["input[name=number][value='4']"].check()
    visit.make("word " * 100 + "Donaudampfschifffahrtsgesellschaft" * 6)
    visit["#strength"].fill("0")
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
    picture = visit.box("#pictures img")
    assert picture["width"] == picture["height"] > 450


def test_whatever_the_window_and_the_letters_nothing_lies_over_anything_else(open_playground: OpenPlayground) -> None:
    visit = open_playground(reduced_motion="reduce")  # or the sheet would slide away
    visit.make(" ".join(["word"] * 90))
    letters = visit.page.context.new_cdp_session(visit.page)
    for size in (16, 32):
        letters.send("Page.setFontSizes", {"fontSizes": {"standard": size}})
        for width, height in ((1366, 650), (1024, 700), (901, 640), (1920, 1080), (740, 360), (360, 740)):
            visit.page.set_viewport_size({"width": width, "height": height})
            over = visit.page.evaluate(
                """() => {
                    const parts = ".ask #stage #actions #panel #meter footer".split(" ");
                    const boxes = parts.map((css) => [css, document.querySelector(css)])
                        .filter(([, one]) => one.checkVisibility({ visibilityProperty: true }))
                        .map(([css, one]) => [css, one.getBoundingClientRect()]);
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
    actions = [
        "reuse",
        "download",
        "draw-on",
        "retouch",
        "favourite",
        "compare",
        "show-full",
        "copy-picture",
        "show-code",
    ]
    assert [name for name in reached if name] == ["surprise", *actions, "file", "size", "seed"]
    assert len(reached) < 40


def test_in_the_system_s_own_colours_what_is_chosen_is_still_seen(open_playground: OpenPlayground) -> None:
    visit = open_playground(forced_colors="active")
    visit["input[name=number][value='2']"].check()
    visit.make("an ant")
    visit.make("a bee")

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
    visit.make("an ant")
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
def test_axe_finds_no_fault_in_any_state(open_playground: OpenPlayground, context: dict[str, Any]) -> None:
    # The policy would block axe.
    visit = open_playground(
        bypass_csp=True, reduced_motion="reduce", permissions=["camera"], complaints="DISCONNECTED", **context
    )
    found = {"text": violations(visit)}
    visit.make("a fox")
    visit[".tabs [data-source=draw]"].click()
    expect(visit["#drawing"]).to_be_visible()
    found["draw"] = violations(visit)
    visit["#retouch"].click()
    expect(visit["#mask"]).to_be_visible()
    visit["#compare"].click()
    found["retouch"] = violations(visit)
    visit["#compare"].click()
    visit[".tabs [data-source=camera]"].click()
    visit["#camera-switch"].click()
    expect(visit["#paper.is-on"]).to_be_visible()
    found["camera"] = violations(visit)
    visit[".tabs [data-source=text]"].click()
    visit["#show-code"].click()
    found["code"] = violations(visit)
    visit["#code [data-close]"].click()
    visit["#help"].click()
    found["shortcuts"] = violations(visit)
    visit["#shortcuts [data-close]"].click()
    visit["#variations summary"].click()
    found["variations"] = violations(visit)
    full(visit)
    visit.page.context.set_offline(True)
    found["full"] = violations(visit)
    assert not any(found.values()), found


def test_nothing_jumps_when_the_first_picture_comes(open_playground: OpenPlayground) -> None:
    for size in (DESK, PHONE):
        visit = open_playground(**size)
        visit.page.reload()
        visit.page.evaluate(
            """() => {
                window.shift = 0;
                const add = (list) => list.getEntries().forEach((entry) => { window.shift += entry.value; });
                new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true });
            }"""
        )
        visit["#prompt"].press_sequentially("a fox with a scarf")
        visit.expect_shown("a fox with a scarf")
        visit.make("a red heart")
        visit.page.wait_for_timeout(300)
        assert visit.page.evaluate("window.shift") <= 0.02


def small_targets(visit: Visit) -> list[str]:
    """Buttons and fields that a finger may miss, with their sizes."""
    found: list[str] = visit.page.evaluate(
        """() => ["button", "select", "summary", "a.button", "input:not([type=radio], .unseen)", ".check"]
            .flatMap((css) => [...document.querySelectorAll(css)])
            .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.matches(".check input"))
            .map((one) => [one, one.getBoundingClientRect()])
            .filter(([, { width, height }]) => width > 0 && (width < 43.5 || height < 43.5))
            .map(([one, { width, height }]) => `${one.id || one.outerHTML.slice(0, 60)} ${width}x${height}`)"""
    )
    return found


def test_on_a_phone_a_finger_hits_every_control_and_the_settings_are_at_the_thumb(
    open_playground: OpenPlayground,
) -> None:
    visit = open_playground(**PHONE, is_mobile=True, permissions=["camera"])
    visit.make("a fox")
    assert small_targets(visit) == []
    assert visit.box("#open-settings")["y"] > 740 - 70
    expect(visit["#size"]).to_be_hidden()
    visit["#open-settings"].tap()
    expect(visit["#size"]).to_be_in_viewport()
    expect(visit["#pictures img"]).to_be_in_viewport(ratio=0.95)  # it is seen while the settings change
    assert small_targets(visit) == []
    visit["#another"].tap()
    expect(visit["#history li"]).to_have_count(2)
    visit["#open-settings"].tap()
    expect(visit["#size"]).to_be_hidden()
    for source in ("draw", "camera"):
        visit[f".tabs [data-source={source}]"].tap()
        expect(visit["#tools"]).to_be_visible()
        assert small_targets(visit) == []
    visit[".tabs [data-source=draw]"].tap()
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_phone_on_its_side_shows_the_whole_picture(open_playground: OpenPlayground) -> None:
    visit = open_playground(viewport={"width": 740, "height": 360}, has_touch=True, is_mobile=True)
    visit.make("a fox")
    visit.page.evaluate("scrollTo(0, 0)")
    expect(visit["#pictures img"]).to_be_in_viewport(ratio=1)
    expect(visit["#prompt"]).to_be_in_viewport(ratio=1)
    assert visit.box("#pictures img")["height"] > 250


def test_scripts_and_styles_that_the_page_loads_are_small(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    loaded = {request.url.rsplit("/", 1)[-1] for request in visit.requests} & {
        file.name for file in STATIC.iterdir() if file.suffix in (".js", ".css")
    }
    assert "playground.css" in loaded
    assert sum((STATIC / name).stat().st_size for name in loaded) < 150_000
