"""States of the page that become requests: the newest wins, typing gives a stream, invalid input sends nothing."""

import time
from collections.abc import Callable

import httpx
from playwright.sync_api import expect

from app.main import create_app
from app.settings import Settings
from tests.playground.conftest import MakeBusy, OpenPlayground, Visit
from tests.support.gated_pipeline import GatedPipeline


def wait_until(condition: Callable[[], object], visit: Visit) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        visit.page.wait_for_timeout(5)  # lets the browser deliver its events


def test_the_picture_follows_what_is_typed_and_is_the_service_s_own(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    expect(visit["#service"]).to_have_text("fake model on none, none")
    assert visit.asked == []
    visit["#prompt"].press_sequentially("a fox")
    visit.expect_shown("a fox")
    visit.make("a fox with a scarf")
    expect(visit["#tokens"]).to_have_text("7 of 77 tokens")
    assert visit["#latency"].inner_text().endswith(" ms")
    assert visit["#rate"].inner_text().endswith(" images/s")
    assert [part.split()[0] for part in visit["#stages li"].all_inner_texts()] == [
        "queue",
        "inference",
        "encode",
        "other",
    ]
    seed = visit.bodies[-1]["seed"]
    assert visit["#made"].inner_text() == f"seed {seed} · 1 step · 512×512"
    download = visit.download()
    assert download.suggested_filename == f"a-fox-with-a-scarf-{seed}.png"
    same = httpx.post(f"{visit.url}/txt2img", json={"prompt": "a fox with a scarf", "seed": seed})
    assert download.path().read_bytes() == same.content


def test_of_what_is_wanted_meanwhile_only_the_newest_is_made(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    visit.watch_stage()
    visit.page.clock.install()
    pipeline.close()
    visit.fill("one")
    visit.page.clock.fast_forward(1000)
    assert pipeline.entered.acquire(timeout=10)
    for prompt in ("two", "three"):
        visit.fill(prompt)
        visit.page.clock.fast_forward(1000)
    assert len(visit.asked) == 1
    pipeline.gate.set()
    visit.expect_shown("three")
    assert pipeline.prompts == visit.shown == ["one", "three"]


def test_a_stale_request_keeps_its_place_in_the_queue_and_its_picture_is_shown(
    open_playground: OpenPlayground, make_busy: MakeBusy
) -> None:
    busy = make_busy()
    visit = open_playground(busy.url)
    visit.watch_stage()
    visit.fill("one")
    wait_until(lambda: busy.waiting == 1, visit)
    visit.fill("two")
    visit.page.wait_for_timeout(500)  # longer than the longest pause before a request
    visit.fill("three")
    assert (len(visit.asked), busy.waiting) == (1, 1)
    busy.pipeline.gate.set()
    visit.expect_shown("three")
    assert visit.shown == ["one", "three"]
    assert busy.pipeline.prompts == ["another's", "one", "three"]


def test_who_types_without_a_pause_sees_a_stream_of_pictures(open_playground: OpenPlayground) -> None:
    visit = open_playground(create_app(Settings(model="fake:0.2")))
    visit.make("an ox")
    visit.fill("")
    visit.watch_stage()
    text = "mountains and a house at sunset with snow"
    visit["#prompt"].press_sequentially(text, delay=20)
    visit.expect_shown(text)
    assert 2 < len(visit.shown) < len(text)
    assert visit.shown == sorted(visit.shown, key=len)
    expect(visit["#history li"]).to_have_count(2)  # pictures of unfinished words are shown but not kept


def test_a_picture_under_way_is_not_shown_over_one_that_is_shown_again(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    visit.make("one")
    visit.watch_stage()
    pipeline.close()
    visit.fill("two")
    assert pipeline.entered.acquire(timeout=10)
    visit["#history button"].click()
    pipeline.gate.set()
    visit.make("three")
    assert visit.shown == ["one", "three"]


def test_an_empty_prompt_asks_for_nothing_and_enter_asks_again(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#prompt"].press("Enter")
    visit["#lock"].click()
    visit.make("an ant")
    visit.fill("  ")
    visit["#prompt"].press("Enter")
    visit.make("a bee")
    with visit.page.expect_response("**/txt2img"):
        visit["#prompt"].press("Enter")
    assert [body["prompt"] for body in visit.bodies] == ["an ant", "a bee", "a bee"]
    assert len({body["seed"] for body in visit.bodies}) == 3


def test_the_first_letter_alone_is_not_sent_while_the_device_s_speed_is_unknown(
    open_playground: OpenPlayground,
) -> None:
    visit = open_playground()
    visit.fill("a")
    visit.page.wait_for_timeout(500)  # longer than the pause before the first request
    assert visit.asked == []
    visit.make("an ant")
    visit.make("b")  # known now
    visit = open_playground()
    visit.fill("c")
    visit["#prompt"].press("Enter")  # or asked for
    visit.expect_shown("c")


def test_enter_on_an_unchanged_prompt_draws_another_and_one_under_way_is_not_asked_for_again(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    pipeline.close()
    visit.fill("an owl")
    visit["#prompt"].press("Enter")
    assert pipeline.entered.acquire(timeout=10)
    visit["#prompt"].press("Enter")
    pipeline.gate.set()
    visit.expect_shown("an owl")
    assert len(visit.asked) == 1
    expect(visit["#lock"]).to_have_attribute("aria-pressed", "true")
    with visit.page.expect_response("**/txt2img"):
        visit["#prompt"].press("Enter")
    expect(visit["#history li"]).to_have_count(2)
    assert len({body["seed"] for body in visit.bodies}) == 2


def test_an_equal_result_is_one_entry_of_the_history(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#seed"].fill("1")
    for prompt in ("an owl", "a fox", "an owl"):
        visit.make(prompt)
    expect(visit["#history button"]).to_have_count(2)
    expect(visit["#history button"].first).to_have_attribute("title", "an owl")


def test_without_a_prompt_the_stage_is_empty(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit.make("an owl")
    visit.fill("")
    expect(visit["#empty"]).to_be_visible()
    expect(visit["#pictures img"]).to_have_count(0)
    expect(visit["#actions"]).to_be_hidden()
    visit["#history button"].click()
    visit.expect_shown("an owl")


def test_a_picture_that_is_late_dims_the_old_one(open_playground: OpenPlayground, pipeline: GatedPipeline) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load))
    visit.make("an owl")
    expect(visit["#stage"]).not_to_have_class("is-late")
    pipeline.close()
    visit.fill("a fox")
    expect(visit["#stage.is-late .late"]).to_have_text("Updating")
    expect(visit["#pictures"]).to_have_css("opacity", "0.45")
    pipeline.gate.set()
    visit.expect_shown("a fox")
    expect(visit["#pictures"]).to_have_css("opacity", "1")


def test_letters_that_an_input_method_has_not_finished_are_not_asked_for(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#prompt"].focus()
    keyboard = visit.page.context.new_cdp_session(visit.page)
    for letters in ("n", "ni"):
        keyboard.send("Input.imeSetComposition", {"text": letters, "selectionStart": 2, "selectionEnd": 2})
        visit.page.wait_for_timeout(400)  # longer than the pause after which a first prompt is sent
    keyboard.send("Input.insertText", {"text": "你"})
    visit.expect_shown("你")
    assert [body["prompt"] for body in visit.bodies] == ["你"]


def test_a_locked_seed_is_kept_and_an_open_one_drawn_for_each_picture(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit["#seed"].fill("42")
    visit.make("an ant")
    visit.make("a bee")
    with visit.page.expect_response("**/txt2img"):
        visit["#dice"].click()
    visit.make("c")
    visit["#lock"].click()
    expect(visit["#seed-hint"]).to_have_text("A new seed is drawn for each picture.")
    visit.make("d")
    visit.make("e")
    seeds = [body["seed"] for body in visit.bodies]
    assert seeds[:2] == [42, 42]
    assert seeds[2] == seeds[3] != 42
    assert len(set(seeds[3:])) == 3
    assert visit["#seed"].input_value() == str(seeds[-1])


def test_a_seed_that_is_none_is_explained_and_nothing_is_sent(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    for seed in ("", "x", "-1", "1.5", "4294967296"):
        visit["#seed"].fill(seed)
        visit.fill("an ant")
        expect(visit["#seed-fault"]).to_have_text("A seed is a whole number from 0 to 4294967295.")
    visit["#seed"].fill("4294967295")
    visit.expect_shown("an ant")
    assert [body["seed"] for body in visit.bodies] == [4294967295]


def test_behind_a_proxy_the_service_may_be_anywhere(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    prefix = f"{visit.url}/studio/turbo"
    visit.page.route(
        f"{prefix}/**",
        lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace(prefix, visit.url))),
    )
    visit.page.goto(f"{prefix}/")
    visit.make("an ant")
    assert visit.asked[-1].url == f"{prefix}/txt2img"
    visit["#show-code"].click()
    expect(visit["#code-text"]).to_contain_text(f"'{prefix}/txt2img'")
    assert visit["#docs"].evaluate("link => link.href") == f"{prefix}/docs"
