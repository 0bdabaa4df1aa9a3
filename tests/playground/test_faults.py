"""Errors on the page: shown in place and retried where that helps; the newest state still wins."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from app.errors import DeviceOutOfMemoryError
from app.main import create_app
from app.settings import Settings
from tests.conftest import serving
from tests.playground.conftest import MakeBusy, OpenPlayground, Visit
from tests.support.gated_pipeline import GatedPipeline

KEY = "0123456789abcdef"


def test_a_busy_service_is_asked_again_when_it_said_and_for_the_newest(
    open_playground: OpenPlayground, make_busy: MakeBusy
) -> None:
    busy = make_busy(max_queue=0)
    visit = open_playground(busy.url, complaints="429")
    visit.fill("one")
    expect(visit["#notice"]).to_contain_text("The service is busy. The page retries automatically.")
    expect(visit["#notice-count"]).to_have_text(re.compile(r"Trying again in \d+ s\."))
    visit.fill("two")
    visit.fill("three")
    busy.pipeline.gate.set()
    visit.expect_shown("three")
    expect(visit["#notice"]).to_be_hidden()
    assert busy.pipeline.prompts == ["another's", "three"]
    assert [body["prompt"] for body in visit.bodies] == ["one", "three"]


def test_who_asks_too_often_is_told_so(open_playground: OpenPlayground) -> None:
    app = create_app(Settings(model="fake", rate_limit="1/day"))
    visit = open_playground(app, complaints="429")
    visit.make("one")
    visit.fill("two")
    expect(visit["#notice"]).to_contain_text("Too many requests: One client may send 1 requests per 86400 s.")
    expect(visit["#notice-count"]).to_have_text(re.compile(r"Trying again in 2[34] h\."))
    visit.fill("")
    expect(visit["#notice"]).to_be_hidden()
    visit.page.clock.install()
    visit.fill("three")
    expect(visit["#notice-count"]).to_have_text(re.compile(r"Trying again in 2[34] h\."))
    visit.page.clock.fast_forward(60_000)
    assert len(visit.asked) == 2
    with visit.page.expect_request("**/txt2img"):
        visit["#retry"].click()


def test_a_field_that_the_service_refuses_is_marked_with_its_reason(open_playground: OpenPlayground) -> None:
    visit = open_playground(complaints="422")
    reason = "As the service says."
    body = {"detail": reason, "errors": [{"param": "num_inference_steps", "detail": reason}]}
    visit.page.route("**/txt2img", lambda route: route.fulfill(status=422, json=body))
    visit.fill("an ant")
    steps = visit.page.get_by_role("radiogroup", name="Steps")
    expect(steps).to_have_accessible_description(reason)
    expect(steps).to_have_attribute("aria-invalid", "true")
    expect(visit["#faults"]).to_have_text(reason)
    expect(visit["#notice"]).to_contain_text("Please look at the marked field.")
    expect(visit["#retry"]).to_be_hidden()
    visit.page.unroute("**/txt2img")
    visit.make("a bee")
    expect(steps).to_have_accessible_description("")
    expect(visit["#faults"]).to_be_empty()
    expect(visit["#notice"]).to_be_hidden()


def test_a_prompt_that_the_service_would_refuse_is_explained_and_not_sent(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    prompt = visit.page.get_by_role("textbox", name="Prompt")
    visit.fill("a\x01b")
    expect(prompt).to_have_accessible_description(re.compile("control characters"))
    visit.fill("🦊" * 2001)
    expect(prompt).to_have_accessible_description("The prompt has 2001 characters; the service takes up to 2000.")
    expect(prompt).to_have_attribute("aria-invalid", "true")
    expect(visit["#faults"]).to_have_text("The prompt has 2001 characters; the service takes up to 2000.")
    visit.make("🦊" * 2000)
    assert len(visit.asked) == 1


def answer_once(visit: Visit, **answer: Any) -> None:
    visit.page.route("**/txt2img", lambda route: route.fulfill(**answer), times=1)


def test_an_answer_that_something_else_gave_is_said_and_not_asked_for_again(open_playground: OpenPlayground) -> None:
    visit = open_playground(complaints="422|400|404")
    foreign = "The response is not the service's own."
    answers = [
        (200, "<h1>Sign in</h1>", foreign),
        (422, '{"detail": "Odd.", "errors": null, "error": null}', "The service rejects this request: Odd."),
        (400, '{"detail": [{"loc": []}], "errors": [null]}', "The service rejects this request: 400 Bad Request"),
        (404, "null", "The service rejects this request: 404 Not Found"),
    ]
    for index, (status, body, said) in enumerate(answers):
        answer_once(visit, status=status, body=body)
        visit.fill(f"prompt {index}")
        expect(visit["#notice-text"]).to_contain_text(said)
        expect(visit["#notice-retrying"]).to_be_empty()
    answer_once(visit, headers={"X-Image-Size": "512x512"}, body=b"no picture")
    visit.fill("no picture")
    expect(visit["#notice-text"]).to_contain_text(foreign)
    visit.make("an ant")


def test_a_service_with_keys_gets_one_which_the_tab_alone_remembers(
    open_playground: OpenPlayground, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"page: {KEY}\n")
    visit = open_playground(create_app(Settings(model="fake", api_keys_file=tmp_path / "keys")), complaints="401")
    visit.fill("an ant")
    expect(visit["#key-fault"]).to_contain_text("Enter one of this service's API keys.")
    expect(visit["#notice"]).to_contain_text("The service needs an API key.")
    visit["#key"].fill("密钥")
    visit["#key"].press("Enter")
    expect(visit["#key-fault"]).to_contain_text("An API key contains only")
    expect(visit["#notice"]).to_be_hidden()
    visit["#key"].fill("wrong-0123456789")
    visit["#key"].press("Enter")
    expect(visit["#key-fault"]).to_have_text("The service does not know this API key.")
    visit["#key"].fill(KEY)
    visit["#key"].press("Enter")
    visit.expect_shown("an ant")
    expect(visit["#key-fault"]).to_be_empty()
    visit["#show-code"].click()
    expect(visit["#code-text"]).to_contain_text("Bearer YOUR_API_KEY")
    assert KEY in visit.page.evaluate("Object.values(sessionStorage)")
    assert KEY not in visit.page.evaluate("Object.values(localStorage)")
    visit.page.reload()
    visit.expect_shown("an ant")
    visit.make("a bee")


def test_without_keys_there_is_no_field_for_one(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit.make("an ant")
    expect(visit["#key"]).to_be_hidden()
    assert "authorization" not in visit.asked[0].headers


def test_a_service_that_is_gone_is_waited_for(open_playground: OpenPlayground) -> None:
    with ExitStack() as stack:
        url = stack.enter_context(serving(create_app(Settings(model="fake"))))
        visit = open_playground(url, complaints="ERR_CONNECTION_REFUSED")
        visit.make("one")
    visit.fill("two")
    expect(visit["#notice"]).to_contain_text("The service cannot be reached. The page retries automatically.")
    expect(visit["#service"]).to_have_text("The service's status is unknown.")
    expect(visit["#pictures img"]).to_have_attribute("alt", "one")


def test_where_a_proxy_keeps_health_inside_pictures_follow_all_the_same(open_playground: OpenPlayground) -> None:
    visit = open_playground(complaints="404")
    visit.page.route("**/healthz/ready", lambda route: route.fulfill(status=404, body="not here"))
    visit.page.reload()
    expect(visit["#service"]).to_have_text("The service's status is unknown.")
    visit["#examples button"].first.click()
    visit.expect_shown("A cinematic shot of a baby racoon wearing an intricate italian priest robe.")


def test_when_the_network_is_back_one_need_not_wait(open_playground: OpenPlayground) -> None:
    visit = open_playground(complaints="ERR_INTERNET_DISCONNECTED")
    visit.page.context.set_offline(True)
    visit.fill("an ant")
    expect(visit["#notice"]).to_contain_text("The service cannot be reached.")
    visit.page.context.set_offline(False)
    visit["#retry"].press("Enter")
    visit.expect_shown("an ant")
    expect(visit["#result"]).to_be_focused()  # else the focus returns to the top of the page
    expect(visit["#service"]).to_contain_text("fake model")


def test_a_service_that_drains_says_so(open_playground: OpenPlayground) -> None:
    app = create_app(Settings(model="fake"))
    visit = open_playground(app, complaints="503")
    app.state.context.engine.admission.drain()
    visit.fill("an ant")
    expect(visit["#notice"]).to_contain_text("The service is not available now: The service is shutting down.")
    expect(visit["#service"]).to_contain_text("(not ready: draining)")


def test_a_request_past_its_deadline_is_tried_again(open_playground: OpenPlayground, make_busy: MakeBusy) -> None:
    busy = make_busy(deadline_s=0.2)
    visit = open_playground(busy.url, complaints="504")
    visit.fill("an ant")
    expect(visit["#notice"]).to_contain_text("The request took too long: The request was not done within 0.2 s.")
    busy.pipeline.gate.set()
    visit.expect_shown("an ant")


def test_what_is_wanted_meanwhile_is_tried_instead_of_what_failed(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load), complaints="503")
    pipeline.close()
    visit.fill("one")
    assert pipeline.entered.acquire(timeout=10)
    visit.fill("two")
    pipeline.errors = [DeviceOutOfMemoryError("No memory."), DeviceOutOfMemoryError("No memory.")]
    pipeline.gate.set()
    expect(visit["#notice"]).to_contain_text("The service is not available now: No memory.")
    visit["#retry"].click()
    visit.expect_shown("two")
    assert [body["prompt"] for body in visit.bodies] == ["one", "two"]


def test_a_failure_is_said_and_tried_again_only_when_asked_for(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load), complaints="500")
    pipeline.error = ValueError("of the pipeline")
    visit.fill("an ant")
    expect(visit["#notice"]).to_contain_text("The request failed: The pipeline failed on this request.")
    expect(visit["#notice-count"]).to_be_empty()
    pipeline.error = None
    visit["#retry"].click()
    visit.expect_shown("an ant")
    assert len(visit.asked) == 2


def test_a_prompt_that_was_cut_is_said_to_be(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit.make(" ".join(["word"] * 90))
    expect(visit["#truncated"]).to_contain_text("longer than the 77 tokens")
    expect(visit["#tokens"]).to_have_text("77 of 77 tokens")
    visit.make("a word")
    expect(visit["#truncated"]).to_be_hidden()
