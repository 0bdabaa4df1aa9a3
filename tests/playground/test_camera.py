"""A camera and a shared screen as start pictures. The camera is the browser's own fake device."""

import re

import pytest
from playwright.sync_api import expect

from app.main import create_app
from app.modes.img2img import Img2ImgParams
from app.settings import Settings
from tests.conftest import wait_until
from tests.playground.conftest import OpenPlayground, Visit
from tests.support.gated_pipeline import GatedPipeline


def start_camera(visit: Visit) -> None:
    visit.make("a robot")
    visit[".tabs [data-source=camera]"].click()
    with visit.page.expect_response("**/img2img"):
        visit["#camera-switch"].click()
    expect(visit["#camera-switch"]).to_have_text("Stop")


def tracks(visit: Visit) -> int:
    live: int = visit.page.evaluate("(document.querySelector('#video').srcObject?.getTracks() ?? []).length")
    return live


def test_the_picture_follows_the_camera_until_it_is_stopped_and_nothing_is_kept(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load), permissions=["camera"])
    start_camera(visit)
    for _ in range(3):
        with visit.page.expect_response("**/img2img"):
            pass
    expect(visit["#live-figures"]).to_have_text(re.compile(r"^[\d.]+ images/s · \d+ ms$"))
    expect(visit["#device"]).to_contain_text("fake_device_0")
    (made,) = pipeline.calls[-1]
    assert isinstance(made, Img2ImgParams)
    assert (made.width, made.height) == (512, 512)
    visit["#camera-switch"].click()
    expect(visit["#camera-switch"]).to_have_text("Start")
    assert tracks(visit) == 0
    expect(visit["#stage:not(.busy)"]).to_be_visible()
    asked = len(visit.asked)
    visit.page.wait_for_timeout(300)
    assert len(visit.asked) == asked
    expect(visit["#history li"]).to_have_count(1)  # that of the text
    assert visit.page.evaluate("indexedDB.databases()") == []


def test_the_camera_is_mirrored_as_it_is_shown_and_goes_out_with_its_tab(
    open_playground: OpenPlayground, pipeline: GatedPipeline
) -> None:
    visit = open_playground(create_app(Settings(model="fake"), load_pipelines=pipeline.load), permissions=["camera"])
    start_camera(visit)
    expect(visit["#video"]).to_have_class("for-camera mirrored")
    visit["#mirror"].click()
    expect(visit["#video"]).to_have_class("for-camera")
    visit[".tabs [data-source=text]"].click()
    expect(visit["#paper"]).to_be_hidden()
    assert tracks(visit) == 0


def test_a_camera_that_is_allowed_after_its_tab_was_left_stays_off(open_playground: OpenPlayground) -> None:
    visit = open_playground(permissions=["camera"])
    visit[".tabs [data-source=camera]"].click()
    expect(visit["#camera-switch"]).to_have_text("Start")
    visit.page.evaluate(
        """() => {
            const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            navigator.mediaDevices.getUserMedia = async (...about) => {
                await new Promise((resolve) => { window.allow = resolve; });
                window.late = await ask(...about);
                return window.late;
            };
        }"""
    )
    visit["#camera-switch"].click()
    visit[".tabs [data-source=draw]"].click()
    visit.page.evaluate("window.allow()")
    ended = "window.late?.getTracks().every(({ readyState }) => readyState === 'ended')"
    wait_until(lambda: visit.page.evaluate(ended))  # the page's policy forbids what wait_for_function does
    assert tracks(visit) == 0


def test_a_camera_s_frame_is_not_stored_with_what_was_made_from_it(open_playground: OpenPlayground) -> None:
    visit = open_playground(permissions=["camera"])
    visit["#keep"].check()
    start_camera(visit)
    visit["#variations summary"].click()
    visit["#four-seeds"].click()
    expect(visit["#kept"]).to_contain_text("2 stored")
    stored = visit.page.evaluate(
        """async () => {
            const { Store } = await import("/playground/store.js");
            const store = new Store({ most: 10, mostBytes: 1e9 });
            await store.open();
            return (await store.all()).map(({ start }) => start);
        }"""
    )
    assert stored == [None, None]


def test_an_error_that_would_come_with_each_frame_stops_the_camera(open_playground: OpenPlayground) -> None:
    visit = open_playground(permissions=["camera"], complaints="422")
    visit.make("a robot")
    visit.page.route("**/img2img", lambda route: route.fulfill(status=422, json={"detail": "No."}))
    visit[".tabs [data-source=camera]"].click()
    visit["#camera-switch"].click()
    expect(visit["#notice-text"]).to_contain_text("No.")
    expect(visit["#camera-switch"]).to_have_text("Start")


def test_a_camera_that_is_refused_is_explained(open_playground: OpenPlayground) -> None:
    visit = open_playground(permissions=[])
    visit[".tabs [data-source=camera]"].click()
    assert (
        visit.page.evaluate("navigator.permissions.query({ name: 'camera' }).then(({ state }) => state)") != "granted"
    )
    visit["#camera-switch"].click()
    expect(visit["#toast"]).to_contain_text("The browser refused the camera.")
    expect(visit["#camera-switch"]).to_have_text("Start")


@pytest.mark.parametrize("source", ["camera", "screen"])
def test_the_page_alone_may_ask_for_a_camera_and_a_screen(open_playground: OpenPlayground, source: str) -> None:
    visit = open_playground()
    headers = visit.page.request.get(f"{visit.url}/").headers
    policy = headers["permissions-policy"]
    name = {"camera": "camera", "screen": "display-capture"}[source]
    assert f"{name}=(self)" in policy
    assert "microphone=()" in policy
    assert "media-src" not in headers["content-security-policy"]  # a stream is no address
    visit[".tabs [data-source=camera]"].click()
    expect(visit["#device option"].last).to_have_attribute("value", "screen")


def test_a_shared_screen_is_a_start_picture_and_is_not_mirrored(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    visit.make("a robot")
    visit[".tabs [data-source=camera]"].click()
    visit["#device"].select_option("screen")
    # The browser's dialog of screens cannot be answered here. So a canvas's stream is in its place.
    visit.page.evaluate(
        """() => {
            const canvas = document.createElement("canvas");
            canvas.getContext("2d");
            navigator.mediaDevices.getDisplayMedia = async () => {
                window.shared = canvas.captureStream(10);
                setInterval(() => canvas.getContext("2d").fillRect(0, 0, 9, 9), 50);
                return window.shared;
            };
        }"""
    )
    with visit.page.expect_response("**/img2img"):
        visit["#camera-switch"].click()
    expect(visit["#video"]).to_have_class("for-camera")
    visit.page.evaluate(
        "() => { const [track] = window.shared.getTracks(); track.stop(); track.dispatchEvent(new Event('ended')); }"
    )
    expect(visit["#camera-switch"]).to_have_text("Start")


def test_the_start_button_stays_where_it_is_while_the_cameras_are_listed(open_playground: OpenPlayground) -> None:
    """Or a click meant for it could meet the list beside it."""
    visit = open_playground(permissions=["camera"])
    visit.page.evaluate(
        """() => {
            const list = navigator.mediaDevices.enumerateDevices.bind(navigator.mediaDevices);
            navigator.mediaDevices.enumerateDevices = async () => {
                await new Promise((resolve) => { window.listNow = resolve; });
                return list();
            };
        }"""
    )
    visit[".tabs [data-source=camera]"].click()
    expect(visit["#camera-switch"]).to_have_text("Start")
    before = visit.box("#camera-switch")
    visit.page.evaluate("window.listNow()")
    expect(visit["#device option"]).to_have_count(2)
    assert visit.box("#camera-switch") == before
