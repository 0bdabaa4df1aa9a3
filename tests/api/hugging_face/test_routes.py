"""Hugging Face's InferenceClient against the service, over real sockets."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, ImageToImageTargetSize, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from app.main import create_app
from app.settings import Settings
from tests.conftest import opened, png, running, serving

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_app(Settings(model="fake"))) as url:
        yield url


@pytest.fixture
def hf(url: str) -> InferenceClient:
    return InferenceClient(model=url)


def same(image: Image.Image, file: bytes) -> bool:
    return bool(np.array_equal(np.asarray(image), np.asarray(opened(file))))


def post(url: str, inputs: str, **parameters: object) -> httpx.Response:
    return httpx.post(url, json={"inputs": inputs, "parameters": parameters})


def test_text_to_image_makes_a_picture(hf: InferenceClient, url: str) -> None:
    image = hf.text_to_image("a cat", seed=7, num_inference_steps=2, width=256, height=128)
    fields = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2, "width": 256, "height": 128}
    assert same(image, httpx.post(f"{url}/txt2img", json=fields).content)
    assert hf.text_to_image("a cat").size == (512, 512)


async def test_text_to_image_works_for_the_asynchronous_client(url: str) -> None:
    async with AsyncInferenceClient(model=url) as client:
        image = await client.text_to_image("a cat", width=64, height=64)
    assert image.size == (64, 64)


def test_image_to_image_makes_a_picture_from_a_picture(hf: InferenceClient, url: str) -> None:
    sent = png((320, 160), "blue")
    image = hf.image_to_image(
        sent,
        prompt="a cat",
        num_inference_steps=4,
        target_size=ImageToImageTargetSize(width=256, height=128),
        strength=0.75,
        seed=7,
    )
    form = {
        "prompt": "a cat",
        "width": "256",
        "height": "128",
        "num_inference_steps": "4",
        "strength": "0.75",
        "seed": "7",
    }
    assert same(image, httpx.post(f"{url}/img2img", data=form, files={"image": sent}).content)


def test_image_to_image_takes_bytes_and_paths_with_and_without_anything_to_say(
    hf: InferenceClient, tmp_path: Path
) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(png((320, 160)))
    for sent in (png((320, 160)), path, str(path)):
        assert hf.image_to_image(sent).size == (728, 360)
        assert hf.image_to_image(sent, prompt="").size == (728, 360)
        assert hf.image_to_image(sent, strength=1.0, num_inference_steps=1).size == (728, 360)


@pytest.mark.parametrize("picture_format", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_known_as_one_by_its_bytes(hf: InferenceClient, picture_format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (128, 64)).save(file, picture_format)
    assert hf.image_to_image(file.getvalue(), strength=0.5).size == (728, 360)
    assert hf.image_to_image(file.getvalue()).size == (728, 360)


def test_a_prompt_in_the_parameters_says_that_the_inputs_are_a_picture(url: str) -> None:
    refused = post(url, "a cat", prompt="a dog")
    assert (refused.status_code, refused.json()["errors"][0]["param"]) == (422, "inputs")
    assert "not base64" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("parameters", "param", "reason"),
    [
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": "1"}, "seed", "valid integer"),
        ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
        ({"num_images": 11}, "num_images", "less than or equal to 10"),
        ({"steps": 20}, "steps", "say num_inference_steps"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt", "say num_images"),
        ({"size": "512x512"}, "size", "say width and height"),
        ({"width": 2048, "height": 2048}, "width", "4194304 pixels"),
    ],
)
def test_a_request_is_refused_with_the_field_and_the_reason(
    hf: InferenceClient, parameters: dict[str, Any], param: str, reason: str
) -> None:
    with pytest.raises(HfHubHTTPError, match="422") as refused:
        hf.text_to_image("a cat", extra_body=parameters)
    problem = refused.value.response.json()
    assert problem["errors"][0]["param"] == param
    assert reason in problem["detail"]
    assert problem["detail"] in str(refused.value)


@pytest.mark.parametrize(
    ("parameters", "ignored", "adjusted", "steps"),
    [
        ({"guidance_scale": 7.5, "negative_prompt": "a dog"}, "guidance_scale, negative_prompt", None, "1"),
        ({"scheduler": "DDIM", "guidance_scale": 0, "negative_prompt": ""}, "scheduler", None, "1"),
        ({"negative_prompt": ["a dog"], "eta": 0.5}, "negative_prompt, eta", None, "1"),
        ({"num_inference_steps": 50}, None, "num_inference_steps=50->4", "4"),
        ({"guidance_scale": None, "num_inference_steps": None}, None, None, "1"),
    ],
)
def test_what_has_no_effect_is_ignored_and_told(
    url: str, parameters: dict[str, Any], ignored: str | None, adjusted: str | None, steps: str
) -> None:
    made = post(url, "a cat", **parameters)
    assert opened(made.content).size == (512, 512)
    told = (made.headers.get("x-ignored-parameters"), made.headers.get("x-adjusted-parameters"))
    assert (*told, made.headers["x-steps"]) == (ignored, adjusted, steps)
    body = {"inputs": "a cat", "parameters": parameters}
    envelope = httpx.post(url, json=body, headers={"Accept": "application/json"}).json()
    warned = [warning.partition(" is ")[0] for warning in envelope.get("warnings", [])]
    names = [*(ignored or "").split(", "), *(adjusted or "").partition("=")[:1]]
    assert warned == [name for name in names if name]


def test_options_of_the_caller_and_unknown_fields_are_ignored_and_told(url: str) -> None:
    made = httpx.post(url, json={"inputs": "a cat", "options": {"wait_for_model": True}, "provider": "x"})
    assert opened(made.content).size == (512, 512)
    assert made.headers["x-ignored-parameters"] == "options, provider"


@pytest.mark.parametrize(
    ("parameters", "used", "adjusted"),
    [
        ({"strength": 0.3}, "1", None),  # the default of 2 steps would run none
        ({"strength": 0.3, "num_inference_steps": 2}, "1", "num_inference_steps=2->4"),
        ({"strength": 0.3, "num_inference_steps": 30}, "1", "num_inference_steps=30->4"),
        ({"strength": 0.1, "num_inference_steps": 30}, "1", "num_inference_steps=30->4, strength=0.1->0.25"),
        ({"strength": 0.9, "num_inference_steps": 30}, "3", "num_inference_steps=30->4"),
    ],
)
def test_a_strength_with_which_no_step_would_run_gets_more_steps(
    url: str, parameters: dict[str, Any], used: str, adjusted: str | None
) -> None:
    made = post(url, base64.b64encode(png()).decode(), **parameters)
    assert made.status_code == 200
    assert (made.headers["x-steps"], made.headers.get("x-adjusted-parameters")) == (used, adjusted)


def test_up_to_ten_pictures_come_as_json(url: str) -> None:
    body = {"inputs": "a cat", "parameters": {"num_images": 10, "seed": 1, "width": 64, "height": 64}}
    made = httpx.post(url, json=body, headers={"Accept": "application/json"}).json()
    assert [image["seed"] for image in made["images"]] == list(range(1, 11))


def test_a_prompt_that_is_too_long_is_cut_and_told(url: str) -> None:
    made = post(url, "word " * 1000)
    assert made.headers["x-adjusted-parameters"] == "prompt=5000->2000 characters"
    assert made.headers["x-prompt-truncated"] == "true"


def test_everything_wrong_is_said_at_once(url: str) -> None:
    refused = post(url, "a cat", steps=20, seed=-1, width=500, num_images=11, height=4000, mask_image="x", image="y")
    assert refused.status_code == 422
    names = {"steps", "seed", "width", "num_images", "height", "mask_image", "image"}
    assert {fault["param"] for fault in refused.json()["errors"]} == names
    outside = httpx.post(url, json={"inputs": 5, "parameters": {"steps": 4, "width": 2048, "height": 2048}})
    assert {fault["param"] for fault in outside.json()["errors"]} == {"inputs", "steps", "width"}


@pytest.mark.parametrize(
    ("parameters", "params"),
    [
        ({"guidance_scale": 7.5, "scheduler": "DDIM", "seed": -1}, ["guidance_scale", "scheduler", "seed"]),
        ({"num_inference_steps": 20}, ["num_inference_steps"]),
        ({"eta": 0.5}, ["eta"]),
    ],
)
async def test_strict_refuses_what_would_be_ignored(parameters: dict[str, Any], params: list[str]) -> None:
    async with running(create_app(Settings(model="fake", strict=True))) as client:
        refused = await client.post("/", json={"inputs": "a cat", "parameters": parameters})
        assert refused.status_code == 422
        assert [fault["param"] for fault in refused.json()["errors"]] == params
        assert (await client.post("/", json={"inputs": "a cat"})).status_code == 200


@pytest.mark.parametrize("body", [b"{}", b'{"inputs": "a", "parameters": {"seed": -1}}', b"{"])
def test_an_error_is_a_text_as_their_javascript_client_shows_it(url: str, body: bytes) -> None:
    problem = httpx.post(url, content=body, headers=JSON).json()
    assert problem["error"] == problem["detail"]


@pytest.mark.parametrize(
    ("parameters", "param", "reason"),
    [
        ({"strength": 0}, "strength", "greater than 0"),
        ({"target_size": {"width": 512}}, "target_size.height", "required"),
        ({"target_size": 512}, "target_size", "must be a JSON object"),
        ({"target_size": {"width": 500, "height": 512}}, "width", "multiple of 8"),
        ({"target_size": {"width": 512, "height": 512}, "width": 256, "height": 256}, "target_size", "twice"),
    ],
)
def test_image_to_image_is_refused_with_the_field_and_the_reason(
    url: str, parameters: dict[str, Any], param: str, reason: str
) -> None:
    refused = post(url, base64.b64encode(png()).decode(), **parameters)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["param"] == param
    assert reason in refused.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{", 400, "is not JSON"),
        (b"[]", 422, "object"),
        (b"{}", 422, "inputs"),
        (b'{"inputs": 3}', 422, "inputs"),
        (b'{"inputs": "a cat", "parameters": {"x": [%s1]}}' % (b"1," * 40_000), 413, "beside"),
        (b'{"inputs": "a cat", "parameters": {%s}}' % b",".join(b'"%d":1' % i for i in range(70_000)), 413, "beside"),
        (b'{"inputs": "%s"}' % ("\N{FOX FACE}" + "a" * 70_000).encode(), 422, "2000 characters"),
        (b'{"inputs": "%s"}' % (b"\\ud83e\\udd8a" + b"a" * 70_000), 422, "2000 characters"),
    ],
)
def test_json_that_is_none_of_theirs_is_refused(url: str, body: bytes, status: int, reason: str) -> None:
    refused = httpx.post(url, content=body, headers=JSON)
    assert refused.status_code == status
    assert reason in refused.json()["detail"]


def test_a_picture_may_be_a_data_url_and_have_blanks_around_it(url: str) -> None:
    encoded = base64.b64encode(png((320, 160))).decode()
    answers = [post(url, inputs, seed=1) for inputs in (encoded, f" {encoded}\n", f"data:image/png;base64,{encoded}")]
    assert len({answer.content for answer in answers}) == 1
    assert opened(answers[0].content).size == (728, 360)


def test_a_file_that_is_no_picture_is_refused(url: str) -> None:
    for content_type in ("application/octet-stream", "image/png"):
        refused = httpx.post(url, content=b"no picture", headers={"Content-Type": content_type})
        assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_image")
    refused = httpx.post(url, content=b"no picture", headers={"Content-Type": "text/plain"})
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")


def test_pictures_of_megabytes_are_taken_bare_and_in_json(url: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1200, 1200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG", compress_level=1)
    hf = InferenceClient(model=url)
    assert hf.image_to_image(file.getvalue()).size == (512, 512)
    assert same(
        hf.image_to_image(file.getvalue(), seed=1),
        post(url, base64.b64encode(file.getvalue()).decode(), seed=1).content,
    )


async def test_a_body_that_is_too_large_is_refused() -> None:
    async with running(create_app(Settings(model="fake", max_body_bytes=100_000))) as client:
        body = json.dumps({"inputs": "A" * 100_000, "parameters": {"prompt": ""}})
        assert (await client.post("/", content=body, headers=JSON)).status_code == 413
        assert (await client.post("/", content=b"A" * 100_001)).status_code == 413
        assert (await client.post("/txt2img", content=body[:70_000], headers=JSON)).status_code == 413


def test_the_answer_follows_accept_as_that_of_the_other_routes(url: str) -> None:
    answer = httpx.post(url, json={"inputs": "a cat"}, headers={"Accept": "application/json"})
    assert answer.json()["parameters"]["prompt"] == "a cat"
    answer = httpx.post(url, json={"inputs": "a cat"}, headers={"Accept": "image/webp"})
    assert opened(answer.content).format == "WEBP"


def test_the_client_s_token_is_the_service_s_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    known, unknown = "0123456789abcdef", "wrong"
    keys.write_text(f"team: {known}")
    with serving(create_app(Settings(model="fake", api_keys_file=keys))) as url:
        with pytest.raises(HfHubHTTPError, match="401"):
            InferenceClient(model=url, token=unknown).text_to_image("a cat")
        assert InferenceClient(model=url, token=known).text_to_image("a cat").size == (512, 512)


@pytest.mark.parametrize("inputs", [r"iVBORw0KGgo\ud800AAAA", r"data:image/png;base64,\ud800AAAA", "iVBORw0KGgoé"])
async def test_a_picture_with_characters_that_base64_lacks_is_rejected(client: httpx.AsyncClient, inputs: str) -> None:
    answer = await client.post(
        "/", content=f'{{"inputs": "{inputs}"}}'.encode(), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["errors"][0]["param"]) == (422, "inputs")


def test_a_picture_with_a_mask_image_is_inpainted(url: str) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 8, 40, 32))
    file = io.BytesIO()
    mask.save(file, "PNG")
    texts = [base64.b64encode(data).decode() for data in (png(), file.getvalue())]
    made = post(url, texts[0], mask_image=texts[1], prompt="a cat", seed=7, padding=8)
    assert made.status_code == 200, made.text
    native = httpx.post(
        f"{url}/inpaint",
        data={"prompt": "a cat", "seed": "7", "padding": "8"},
        files={"image": png(), "mask": file.getvalue()},
    )
    assert made.content == native.content
    refused = post(url, texts[0], mask_image=5)
    assert [fault["param"] for fault in refused.json()["errors"]] == ["mask_image"]
    broken = post(url, texts[0], mask_image="AAAA")
    assert broken.status_code == 415


def test_parameters_of_inpainting_extend_a_picture_without_a_mask(url: str) -> None:
    made = post(url, base64.b64encode(png()).decode(), prompt="a cat", seed=7, extend="64")
    assert opened(made.content).size == (192, 192)


def test_faults_of_the_files_name_the_parameters_that_have_them(url: str) -> None:
    black = base64.b64encode(png(color="black")).decode()
    refused = post(url, black, mask_image=black).json()
    assert "nothing would be drawn" in refused["detail"]
    assert [fault["param"] for fault in refused["errors"]] == ["mask_image"] if "errors" in refused else True
