"""How prompts are read over every route: long ones, and brackets. The fake counts a word as a token."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.conftest import png, serving

WORDS = " ".join(f"w{number}" for number in range(100))
EMPHASIZED = "a (red:1.3) fox"
SIZE = {"width": 64, "height": 64, "seed": 7}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of the fake, for all tests."""
    with serving(create_app(Settings(model="fake"))) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


Ask = Callable[..., httpx.Response]


def native(client: httpx.Client, prompt: str, **fields: Any) -> httpx.Response:
    return client.post("/txt2img", json={"prompt": prompt, **SIZE, **fields})


def native_from_picture(client: httpx.Client, prompt: str, **fields: Any) -> httpx.Response:
    return client.post("/img2img", data={"prompt": prompt, **SIZE, **fields}, files={"image": png()})


def openai(client: httpx.Client, prompt: str, **fields: Any) -> httpx.Response:
    body = {"prompt": prompt, "size": "64x64", "seed": 7, **fields}
    return client.post("/v1/images/generations", json=body)


def openai_edit(client: httpx.Client, prompt: str, **fields: Any) -> httpx.Response:
    data = {"prompt": prompt, "seed": 7, **fields}
    return client.post("/v1/images/edits", data=data, files={"image": png()})


def hugging_face(client: httpx.Client, prompt: str, **fields: Any) -> httpx.Response:
    return client.post("/", json={"inputs": prompt, "parameters": {**SIZE, **fields}})


def sdapi(client: httpx.Client, prompt: str, **fields: Any) -> httpx.Response:
    return client.post("/sdapi/v1/txt2img", json={"prompt": prompt, **SIZE, **fields})


def sdapi_from_picture(client: httpx.Client, prompt: str, **fields: Any) -> httpx.Response:
    start = base64.b64encode(png()).decode()
    return client.post("/sdapi/v1/img2img", json={"prompt": prompt, "init_images": [start], **SIZE, **fields})


def used(response: httpx.Response) -> tuple[str, str | None]:
    """The tokens that were used, and whether some were cut."""
    assert response.status_code == 200, response.text
    return response.headers["x-prompt-tokens"], response.headers.get("x-prompt-truncated")


def file_of(response: httpx.Response) -> bytes:
    """The picture, without its text."""
    content = response.content
    if response.headers["content-type"] == "application/json":
        answer = response.json()
        coded = answer["images"][0] if "images" in answer else answer["data"][0]["b64_json"]
        content = base64.b64decode(coded)
    return content


def pixels_of(response: httpx.Response) -> bytes:
    file = file_of(response)
    start = file.index(b"IDAT")
    return file[start : file.index(b"IEND")]


OURS = pytest.mark.parametrize("ask", [native, native_from_picture, openai, openai_edit, hugging_face])
WEBUI = pytest.mark.parametrize("ask", [sdapi, sdapi_from_picture])


@OURS
def test_a_long_prompt_is_cut_unless_chunked_is_asked_for(client: httpx.Client, ask: Ask) -> None:
    cut, chunked = ask(client, WORDS), ask(client, WORDS, prompt_mode="chunked")
    assert used(cut) == used(ask(client, WORDS, prompt_mode="cut")) == ("77", "true")
    assert used(chunked) == ("104", None)
    assert pixels_of(cut) != pixels_of(chunked)


@OURS
def test_brackets_are_text_unless_the_webui_s_syntax_is_asked_for(client: httpx.Client, ask: Ask) -> None:
    plain, webui = ask(client, EMPHASIZED), ask(client, EMPHASIZED, prompt_syntax="webui")
    assert pixels_of(plain) == pixels_of(ask(client, EMPHASIZED, prompt_syntax="plain"))
    assert len({pixels_of(plain), pixels_of(webui), pixels_of(ask(client, "a red fox"))}) == 3
    escaped = ask(client, r"a \(red:1.3\) fox", prompt_syntax="webui")
    assert pixels_of(escaped) == pixels_of(plain)


@WEBUI
def test_the_webui_s_routes_read_long_prompts_and_brackets_as_that_server_does(client: httpx.Client, ask: Ask) -> None:
    assert used(ask(client, WORDS)) == ("104", None)
    assert used(ask(client, "a BREAK b")) == ("6", None)
    assert len({pixels_of(ask(client, prompt)) for prompt in (EMPHASIZED, "a red fox", "a (red:1.2) fox")}) == 3


def test_a_picture_is_the_same_over_every_route_that_reads_its_prompt_alike(client: httpx.Client) -> None:
    wanted = pixels_of(sdapi(client, f"{EMPHASIZED} BREAK {WORDS}"))
    for ask in (native, openai, hugging_face):
        fields = {"prompt_mode": "chunked", "prompt_syntax": "webui"}
        assert pixels_of(ask(client, f"{EMPHASIZED} BREAK {WORDS}", **fields)) == wanted


@pytest.mark.parametrize("overrides", [{"enable_emphasis": False}, {"emphasis": "None"}])
@WEBUI
def test_the_webui_s_setting_makes_brackets_text(client: httpx.Client, ask: Ask, overrides: dict[str, Any]) -> None:
    off = ask(client, EMPHASIZED, override_settings=overrides)
    assert pixels_of(off) == pixels_of(ask(client, r"a \(red:1.3\) fox"))
    assert used(ask(client, WORDS, override_settings=overrides)) == ("104", None)
    assert "x-ignored-parameters" not in off.headers


@pytest.mark.parametrize("overrides", [{"enable_emphasis": True}, {"emphasis": "Original"}, {"emphasis": None}, {}])
def test_the_webui_s_setting_at_its_default_changes_nothing(client: httpx.Client, overrides: dict[str, Any]) -> None:
    made = sdapi(client, EMPHASIZED, override_settings=overrides)
    assert pixels_of(made) == pixels_of(sdapi(client, EMPHASIZED))
    assert "x-ignored-parameters" not in made.headers


def test_other_ways_to_apply_weights_are_ignored_and_told(client: httpx.Client) -> None:
    made = sdapi(client, EMPHASIZED, override_settings={"emphasis": "No norm"})
    assert pixels_of(made) == pixels_of(sdapi(client, EMPHASIZED))
    assert made.headers["x-ignored-parameters"] == "override_settings.emphasis"


def test_what_lies_beyond_8_windows_is_cut_and_told(client: httpx.Client) -> None:
    for words, expected in ((600, ("616", None)), (601, ("616", "true"))):
        made = native(client, "a " * words, prompt_mode="chunked")
        assert used(made) == expected
    envelope = client.post(
        "/txt2img",
        json={"prompt": "a " * 601, "prompt_mode": "chunked", **SIZE},
        headers={"Accept": "application/json"},
    )
    parameters = envelope.json()["parameters"]
    assert (parameters["prompt_tokens"], parameters["prompt_truncated"]) == (616, True)


@pytest.mark.parametrize("ask", [native, native_from_picture, openai, openai_edit, hugging_face, sdapi])
def test_too_large_a_weight_is_an_error_that_names_the_prompt(client: httpx.Client, ask: Ask) -> None:
    fields = {} if ask is sdapi else {"prompt_syntax": "webui"}
    response = ask(client, "a (fox:11)", **fields)
    assert response.status_code == 422
    assert "prompt" in response.text
    assert "from -10 to 10" in response.text
    if ask is not sdapi:
        assert (ask(client, "a (fox:11)")).status_code == 200


@OURS
def test_other_modes_and_syntaxes_are_rejected(client: httpx.Client, ask: Ask) -> None:
    for fields in ({"prompt_mode": "truncate"}, {"prompt_syntax": "compel"}):
        response = ask(client, "a", **fields)
        assert response.status_code == 422
        assert next(iter(fields)) in response.text


@pytest.mark.parametrize("ask", [openai, hugging_face])
def test_dialects_take_null_as_left_out(client: httpx.Client, ask: Ask) -> None:
    assert used(ask(client, WORDS, prompt_mode=None, prompt_syntax=None)) == ("77", "true")


def test_the_picture_s_text_and_the_answer_have_the_prompt_as_it_was_sent(client: httpx.Client) -> None:
    prompt = r"a \(red\) (fox:1.2) BREAK snow"
    made = sdapi(client, prompt)
    assert made.json()["parameters"]["prompt"] == prompt
    assert json.loads(made.json()["info"])["infotexts"][0].startswith(f"{prompt}\nSteps: ")
    assert f"{prompt}\nSteps: ".encode() in file_of(made)


def test_strictly_the_webui_s_reading_stays(client: httpx.Client) -> None:
    with (
        serving(create_app(Settings(model="fake", strict=True))) as url,
        httpx.Client(base_url=url, timeout=60) as strict,
    ):
        assert pixels_of(sdapi(strict, EMPHASIZED)) == pixels_of(sdapi(client, EMPHASIZED))
