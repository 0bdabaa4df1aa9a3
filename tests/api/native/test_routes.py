import asyncio
import base64
import io
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from app.main import create_app
from app.settings import Settings
from tests.conftest import opened, png, running, serving, until
from tests.support.gated_pipeline import GatedPipeline

Json = dict[str, Any]


async def txt2img(client: httpx.AsyncClient, accept: str | None = None, **fields: object) -> httpx.Response:
    headers = {} if accept is None else {"Accept": accept}
    return await client.post("/txt2img", json={"prompt": "a cat", "seed": 7, **fields}, headers=headers)


async def img2img(
    client: httpx.AsyncClient, image: bytes | None = None, accept: str | None = None, **fields: object
) -> httpx.Response:
    headers = {} if accept is None else {"Accept": accept}
    data = {name: str(value) for name, value in {"prompt": "a cat", "seed": 7, **fields}.items()}
    return await client.post("/img2img", data=data, files={"image": png() if image is None else image}, headers=headers)


# What comes back.


async def test_text_to_image_answers_a_png_with_everything_about_it_in_headers(client: httpx.AsyncClient) -> None:
    response = await txt2img(client, width=128, height=64, num_inference_steps=3)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert opened(response.content).size == (128, 64)
    assert response.headers["x-seed"] == "7"
    assert response.headers["x-steps"] == "3"
    assert response.headers["x-image-size"] == "128x64"
    assert response.headers["x-prompt-tokens"] == "4"
    assert "x-prompt-truncated" not in response.headers
    assert response.headers["vary"] == "Accept"
    assert response.headers["cache-control"] == "no-store"
    stages = dict(stage.split(";dur=") for stage in response.headers["server-timing"].split(", "))
    assert list(stages) == ["queue", "inference", "encode"]
    assert all(float(duration) >= 0 for duration in stages.values())


async def test_text_to_image_is_512x512_in_one_step_by_default(client: httpx.AsyncClient) -> None:
    response = await client.post("/txt2img", json={"prompt": "a cat"})
    assert (response.headers["x-image-size"], response.headers["x-steps"]) == ("512x512", "1")


async def test_image_to_image_answers_a_png_and_the_steps_that_really_ran(client: httpx.AsyncClient) -> None:
    response = await img2img(client, png((640, 640)), num_inference_steps=4, strength=0.6)
    assert response.status_code == 200
    assert opened(response.content).size == (512, 512)
    assert response.headers["x-steps"] == "2"
    assert response.headers["server-timing"].startswith("decode;dur=")


async def test_image_to_image_takes_two_steps_at_half_strength_by_default(client: httpx.AsyncClient) -> None:
    response = await img2img(client, accept="application/json")
    parameters = response.json()["parameters"]
    assert (parameters["num_inference_steps"], parameters["strength"], parameters["effective_steps"]) == (2, 0.5, 1)


@pytest.mark.parametrize(
    ("fields", "expected"), [({}, "728x360"), ({"width": 64, "height": 128}, "64x128")], ids=["kept", "given"]
)
async def test_image_to_image_keeps_the_aspect_or_takes_the_size_given(
    client: httpx.AsyncClient, fields: Json, expected: str
) -> None:
    response = await img2img(client, png((200, 100)), **fields)
    assert response.headers["x-image-size"] == expected


async def test_a_long_prompt_is_reported_as_cut(client: httpx.AsyncClient) -> None:
    response = await txt2img(client, prompt="word " * 100)
    assert response.headers["x-prompt-tokens"] == "77"
    assert response.headers["x-prompt-truncated"] == "true"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "image/png"),
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/webp", "image/webp"),
        ("image/jpeg;q=0.9, image/webp;q=0.5", "image/jpeg"),
    ],
)
async def test_the_picture_s_format_follows_accept(
    client: httpx.AsyncClient, accept: str | None, expected: str
) -> None:
    response = await txt2img(client, accept)
    assert response.headers["content-type"] == expected
    assert opened(response.content).format == expected.removeprefix("image/").upper()


async def test_the_envelope_carries_pictures_parameters_and_timings(client: httpx.AsyncClient) -> None:
    response = await txt2img(client, "application/json", num_images=2, width=64, height=64)
    envelope = response.json()
    assert [image["seed"] for image in envelope["images"]] == [7, 8]
    assert {image["media_type"] for image in envelope["images"]} == {"image/png"}
    assert all(opened(base64.b64decode(image["b64"])).size == (64, 64) for image in envelope["images"])
    assert envelope["parameters"] == {
        "mode": "txt2img",
        "model": "fake",
        "prompt": "a cat",
        "prompt_tokens": 4,
        "prompt_truncated": False,
        "num_inference_steps": 1,
        "effective_steps": 1,
        "width": 64,
        "height": 64,
    }
    assert set(envelope["timings"]) == {"decode_s", "queue_s", "inference_s", "encode_s"}
    assert response.headers["x-seed"] == "7"


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "image/png, application/json;q=0.1"])
async def test_several_pictures_come_in_an_envelope(client: httpx.AsyncClient, accept: str | None) -> None:
    response = await txt2img(client, accept, num_images=3)
    assert response.headers["content-type"] == "application/json"
    assert len(response.json()["images"]) == 3


@pytest.mark.parametrize("make", [txt2img, img2img])
async def test_several_pictures_are_those_that_single_requests_of_following_seeds_give(
    client: httpx.AsyncClient, make: Callable[..., Awaitable[httpx.Response]]
) -> None:
    together = (await make(client, num_images=3)).json()["images"]
    assert [image["seed"] for image in together] == [7, 8, 9]
    for image in together:
        assert base64.b64decode(image["b64"]) == (await make(client, seed=image["seed"])).content


@pytest.mark.parametrize(
    ("accept", "num_images"),
    [("image/gif", 1), ("text/html", 1), ("image/png", 2), ("not a type", 1), ("image/png;q=0", 1)],
)
async def test_what_cannot_be_answered_as_accept_asks_is_a_406_and_makes_no_picture(
    pipeline: GatedPipeline, accept: str, num_images: int
) -> None:
    async with running(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as client:
        pipeline.calls.clear()
        response = await txt2img(client, accept, num_images=num_images)
        assert response.status_code == 406
        assert response.json()["code"] == "not_acceptable"
        assert not pipeline.calls


async def test_the_same_request_gives_the_same_bytes(client: httpx.AsyncClient) -> None:
    assert (await txt2img(client)).content == (await txt2img(client)).content
    assert (await img2img(client)).content == (await img2img(client)).content


async def test_a_seed_that_was_drawn_is_reported_and_gives_the_picture_again(client: httpx.AsyncClient) -> None:
    drawn = [await txt2img(client, seed=None) for _ in range(3)]
    seeds = [int(response.headers["x-seed"]) for response in drawn]
    assert len(set(seeds)) == 3
    assert (await txt2img(client, seed=seeds[0])).content == drawn[0].content


async def test_a_png_carries_its_parameters(client: httpx.AsyncClient) -> None:
    text = opened((await img2img(client, prompt="一只猫", strength=0.75)).content).info["parameters"]
    assert text == (
        "一只猫\n"
        "Steps: 2, Sampler: Euler a, CFG scale: 0, Seed: 7, Size: 512x512, Model: fake, Denoising strength: 0.75"
    )


async def test_a_png_carries_nothing_when_all_that_is_switched_off() -> None:
    async with running(create_app(Settings(model="fake", image_metadata=False, ai_label=False))) as client:
        assert not opened((await txt2img(client)).content).info


async def test_no_two_pictures_differ_by_clock_or_request_id(client: httpx.AsyncClient) -> None:
    first = await client.post("/txt2img", json={"prompt": "a", "seed": 1}, headers={"X-Request-ID": "one"})
    await asyncio.sleep(1.1)
    second = await client.post("/txt2img", json={"prompt": "a", "seed": 1}, headers={"X-Request-ID": "two"})
    assert first.content == second.content


# What is refused.


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"prompt": None}, "prompt", "valid string"),
        ({"prompt": "x" * 2001}, "prompt", "at most 2000 characters"),
        ({"prompt": "a\x00b"}, "prompt", "pattern"),
        ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
        ({"num_inference_steps": 5}, "num_inference_steps", "less than or equal to 4"),
        ({"num_inference_steps": "1"}, "num_inference_steps", "valid integer"),
        ({"width": 100}, "width", "multiple of 8"),
        ({"width": 56}, "width", "greater than or equal to 64"),
        ({"height": 2056}, "height", "less than or equal to 2048"),
        ({"width": 2048, "height": 1032}, "width", "2113536 pixels, and at most 2097152"),
        ({"num_images": 5}, "num_images", "less than or equal to 4"),
        ({"num_images": True}, "num_images", "valid integer"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**32}, "seed", "less than or equal to 4294967295"),
        ({"seed": 2**32 - 2, "num_images": 3}, "seed", "seed + num_images - 1, which must not pass 4294967295"),
        ({"guidance_scale": 7.5}, "guidance_scale", "SDXL-Turbo does not use guidance"),
        ({"negative_prompt": "ugly"}, "negative_prompt", "SDXL-Turbo does not use a negative prompt"),
        ({"steps": 2}, "steps", "say num_inference_steps"),
        ({"n": 2}, "n", "say num_images"),
        ({"size": "512x512"}, "size", "say width and height"),
        ({"promt": "a dog"}, "promt", "say prompt"),
        ({"scheduler": "DDIM"}, "scheduler", "There is no such parameter here."),
    ],
)
async def test_text_to_image_refuses_with_the_field_and_the_reason(
    client: httpx.AsyncClient, fields: Json, param: str, reason: str
) -> None:
    response = await txt2img(client, **fields)
    problem = response.json()
    assert response.status_code == 422, problem
    assert problem["code"] == "invalid_request"
    assert problem["error"]["param"] == param
    assert reason in problem["detail"]


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"strength": 0}, "strength", "greater than 0"),
        ({"strength": 1.01}, "strength", "less than or equal to 1"),
        ({"strength": "nan"}, "strength", "finite number"),
        ({"num_inference_steps": 1}, "strength", "With 1 steps the smallest strength that works is 1.0"),
        ({"strength": 0.49}, "strength", "With 2 steps the smallest strength that works is 0.5"),
        ({"strength": 0.3, "num_inference_steps": 3}, "strength", "smallest strength that works is 0.3334"),
        ({"strength": 0.2, "num_inference_steps": 4}, "strength", "smallest strength that works is 0.25"),
        ({"width": 512}, "height", "both width and height, or neither"),
        ({"height": 512}, "width", "both width and height, or neither"),
        ({"width": 2048, "height": 2048}, "width", "at most 2097152"),
        ({"guidance_scale": 1}, "guidance_scale", "does not use guidance"),
        ({"negative_prompt": "ugly"}, "negative_prompt", "does not use a negative prompt"),
        ({"mask": "x"}, "mask", "There is no such parameter here; it belongs to inpainting."),
        ({"denoising_strength": 0.5}, "denoising_strength", "say strength"),
        ({"seed": "1_0"}, "seed", "valid integer"),
    ],
)
async def test_image_to_image_refuses_with_the_field_and_the_reason(
    client: httpx.AsyncClient, fields: Json, param: str, reason: str
) -> None:
    response = await img2img(client, **fields)
    problem = response.json()
    assert response.status_code == 422, problem
    assert problem["error"]["param"] == param
    assert reason in problem["detail"]


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
async def test_the_smallest_strength_that_is_named_works(client: httpx.AsyncClient, steps: int) -> None:
    refused = await img2img(client, num_inference_steps=steps, strength=0.01)
    named = refused.json()["detail"].rpartition(" ")[2].rstrip(".")
    accepted = await img2img(client, num_inference_steps=steps, strength=named)
    assert accepted.status_code == 200
    assert accepted.headers["x-steps"] == "1"


@pytest.mark.parametrize("fields", [{"guidance_scale": 0}, {"guidance_scale": 0.0, "negative_prompt": ""}])
async def test_switches_that_ask_for_nothing_are_taken(client: httpx.AsyncClient, fields: Json) -> None:
    assert (await txt2img(client, **fields)).status_code == 200
    assert (await img2img(client, **fields)).status_code == 200


async def test_a_picture_that_is_no_file_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/img2img", files={"prompt": (None, "a cat"), "image": (None, "text")})
    assert response.status_code == 422
    assert response.json()["detail"] == "image: Send the picture as a file."


@pytest.mark.parametrize(
    ("name", "value"), [("image", ("one.png", png())), ("prompt", (None, "another")), ("seed", (None, "1"))]
)
async def test_a_form_field_that_is_sent_twice_is_refused(client: httpx.AsyncClient, name: str, value: Any) -> None:
    fields: list[tuple[str, Any]] = [("prompt", (None, "a")), ("image", ("a.png", png())), ("seed", (None, "2"))]
    response = await client.post("/img2img", files=[*fields, (name, value)])
    assert response.status_code == 422
    assert response.json()["detail"] == f"{name} is sent twice."


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (b'name="seed"\r\n\r\n7', "before its closing boundary"),
        (b'name="seed"\r\n\r\n7\r\n', "before its closing boundary"),
        (b'name="negative_prompt"\r\n\r\n\xff\r\n--b--\r\n', "not in utf-8"),
        (b'name="seed"\r\n\r\n%s\r\n--b--\r\n' % (b"7" * (1 << 21)), "maximum size"),
    ],
)
async def test_a_form_is_taken_whole_or_refused_with_the_reason(
    client: httpx.AsyncClient, end: bytes, reason: str
) -> None:
    begin = (
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat\r\n--b\r\nContent-Disposition: form-data; '
    )
    file = b'name="image"; filename="a.png"\r\n\r\n' + png() + b"\r\n--b\r\nContent-Disposition: form-data; "
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused = await client.post("/img2img", content=begin + file + end, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (400, "malformed_body")
    assert reason in refused.json()["detail"]


async def test_a_missing_picture_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/img2img", files={"prompt": (None, "a cat")})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "image"


async def test_an_empty_prompt_is_a_prompt(client: httpx.AsyncClient) -> None:
    assert (await txt2img(client, prompt="")).headers["x-prompt-tokens"] == "2"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GIF89a", 415, "unsupported_image"),
        (b"", 415, "unsupported_image"),
        (png((256, 256))[:-200], 422, "invalid_image"),
        (png((513, 512)), 413, "image_too_large"),
    ],
)
async def test_an_upload_is_refused_with_its_reason(data: bytes, status: int, code: str) -> None:
    async with running(create_app(Settings(model="fake", max_upload_pixels=512 * 512))) as client:
        response = await img2img(client, data)
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert response.json()["error"]["param"] == "image"


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("/txt2img", "text/plain"), ("/txt2img", "multipart/form-data; boundary=x"), ("/img2img", "application/json")],
)
async def test_a_body_of_another_type_is_a_415(client: httpx.AsyncClient, path: str, content_type: str) -> None:
    response = await client.post(path, content=b"{}", headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=b"],
    ids=["no boundary", "no parts"],
)
async def test_a_form_that_cannot_be_parsed_is_a_400(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post("/img2img", content=b"junk", headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["code"]) == (400, "malformed_body")


# Overload, deadlines, and clients that leave.


async def test_when_the_queue_is_full_the_next_is_told_when_to_come_back(pipeline: GatedPipeline) -> None:
    app = create_app(Settings(model="fake", max_queue=1), load_pipelines=pipeline.load)
    async with running(app) as client:
        pipeline.close()
        accepted = [asyncio.create_task(txt2img(client)) for _ in range(2)]
        await until(lambda: app.state.context.engine.admission.waiting == 1)
        for refused in (await txt2img(client), await img2img(client)):
            assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(refused.headers["retry-after"]) <= 120
        pipeline.gate.set()
        assert [response.status_code for response in await asyncio.gather(*accepted)] == [200, 200]


async def test_a_request_past_its_deadline_gets_504(pipeline: GatedPipeline) -> None:
    async with running(create_app(Settings(model="fake", deadline_s=0.2), load_pipelines=pipeline.load)) as client:
        pipeline.close()
        response = await txt2img(client)
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        pipeline.gate.set()


async def test_what_this_device_cannot_do_by_the_deadline_is_422_at_once_whichever_way_it_is_asked_for() -> None:
    pipeline = GatedPipeline(unit_s=0.2, work=lambda params: (params.width * params.height / 512**2) ** 2)
    settings = Settings(model="fake", deadline_s=0.5)
    large, size = {"prompt": "a cat", "width": 2048, "height": 1024}, "2048x1024"
    init_images = [base64.b64encode(png()).decode()]
    async with running(create_app(settings, load_pipelines=pipeline.load)) as client:
        pipeline.calls.clear()
        for refused in (
            await client.post("/txt2img", json=large),
            await client.post("/img2img", data=large, files={"image": png()}),
            await client.post("/v1/images/generations", json={"prompt": "a cat", "size": size}),
            await client.post("/v1/images/edits", data={"prompt": "a cat", "size": size}, files={"image": png()}),
            await client.post("/", json={"inputs": "a cat", "parameters": {"width": 2048, "height": 1024}}),
            await client.post("/sdapi/v1/txt2img", json=large),
            await client.post("/sdapi/v1/img2img", json={**large, "init_images": init_images}),
        ):
            assert (refused.status_code, refused.json()["code"]) == (422, "beyond_deadline"), refused.text
            assert re.search(r"take \d\d\.\d s on this device, and a request may take 5 s", refused.json()["detail"])
        assert pipeline.calls == []
        small = await client.post("/txt2img", json={"prompt": "a cat", "width": 64, "height": 64})
        assert small.status_code == 200


def test_clients_that_hang_up_while_they_wait_cost_the_device_nothing(pipeline: GatedPipeline) -> None:
    app = create_app(Settings(model="fake"), load_pipelines=pipeline.load)
    engine = app.state.context.engine
    with serving(app) as url:
        pipeline.close()
        request = {"json": {"prompt": "first"}, "timeout": 60}
        first = threading.Thread(target=httpx.post, args=(f"{url}/txt2img",), kwargs=request)
        first.start()
        assert pipeline.entered.acquire(timeout=10)
        for i in range(5):  # each waits behind the first and hangs up
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/txt2img", json={"prompt": f"gone {i}"}, timeout=0.2)
        deadline = time.monotonic() + 10
        while engine.admission.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        pipeline.gate.set()
        first.join()
        assert httpx.post(f"{url}/txt2img", json={"prompt": "last"}).status_code == 200
    assert pipeline.prompts == ["first", "last"]


def test_a_client_that_hangs_up_during_its_call_harms_nobody(pipeline: GatedPipeline) -> None:
    with serving(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as url:
        pipeline.close()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/txt2img", json={"prompt": "gone"}, timeout=0.3)
        pipeline.gate.set()
        assert httpx.post(f"{url}/txt2img", json={"prompt": "last"}).status_code == 200
    assert pipeline.peak == 1


async def test_a_failed_picture_is_a_500_that_tells_nothing_of_the_inside(pipeline: GatedPipeline) -> None:
    async with running(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as client:
        pipeline.error = RuntimeError("/secret/path.py line 3")
        response = await txt2img(client)
        assert (response.status_code, response.json()["code"]) == (500, "inference_failed")
        assert "secret" not in response.text
        pipeline.error = None
        assert (await txt2img(client)).status_code == 200


def test_however_many_send_pictures_no_more_are_read_at_once_than_there_are_threads_for_it() -> None:
    file = io.BytesIO()
    Image.effect_noise((2048, 2048), 100).convert("RGB").save(file, "PNG", compress_level=0)

    def send(url: str) -> int:
        files = {"image": file.getvalue()}
        return httpx.post(f"{url}/img2img", data={"prompt": "a"}, files=files, timeout=60).status_code

    with serving(create_app(Settings(model="fake"))) as url, ThreadPoolExecutor(12) as clients:
        assert set(clients.map(send, [url] * 12)) == {200}
        assert sum(thread.name.startswith("codec") for thread in threading.enumerate()) <= 4


async def test_uploads_are_read_from_disk_as_from_memory(client: httpx.AsyncClient) -> None:
    """Starlette keeps a file of over 1 MiB on disk."""
    file = io.BytesIO()
    Image.effect_noise((1500, 1500), 100).convert("RGB").save(file, "PNG")
    assert len(file.getvalue()) > 1 << 20
    assert (await img2img(client, file.getvalue())).status_code == 200


# More denoising steps.


@pytest.fixture
async def ten_steps() -> AsyncIterator[httpx.AsyncClient]:
    async with running(create_app(Settings(model="fake", max_steps=10))) as client:
        yield client


async def test_as_many_steps_run_as_the_operator_allows(ten_steps: httpx.AsyncClient) -> None:
    assert (await txt2img(ten_steps, num_inference_steps=10)).headers["x-steps"] == "10"
    assert (await img2img(ten_steps, num_inference_steps=8, strength=0.5)).headers["x-steps"] == "4"
    refused = await txt2img(ten_steps, num_inference_steps=11)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "num_inference_steps")


async def test_without_the_setting_more_than_four_steps_are_refused_with_the_limit(client: httpx.AsyncClient) -> None:
    for response in (await txt2img(client, num_inference_steps=5), await img2img(client, num_inference_steps=10)):
        assert response.status_code == 422
        assert "less than or equal to 4" in response.json()["detail"]


async def test_other_programs_get_as_many_steps_as_the_operator_allows(ten_steps: httpx.AsyncClient) -> None:
    body = {"prompt": "a cat", "steps": 20, "width": 64, "height": 64}
    response = await ten_steps.post("/sdapi/v1/txt2img", json=body)
    assert response.headers["x-adjusted-parameters"] == "steps=20->10"
    assert response.headers["x-steps"] == "10"
    body = {"inputs": "a cat", "parameters": {"num_inference_steps": 8}}
    assert (await ten_steps.post("/", json=body)).headers["x-steps"] == "8"


async def test_the_openapi_document_has_the_operator_s_limit(ten_steps: httpx.AsyncClient) -> None:
    paths = (await ten_steps.get("/openapi.json")).json()["paths"]
    for path, media_type in (("/txt2img", "application/json"), ("/inpaint", "multipart/form-data")):
        schema = paths[path]["post"]["requestBody"]["content"][media_type]["schema"]
        assert schema["properties"]["num_inference_steps"]["maximum"] == 10
    async with running(create_app(Settings(model="fake"))) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        schema = paths["/txt2img"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"]["num_inference_steps"]["maximum"] == 4
