"""OpenAI's Images API through OpenAI's own SDK, over real sockets."""

import base64
import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from app.errors import DeadPictureError, InferenceError
from app.main import create_app
from app.settings import Settings
from tests.conftest import opened, png, serving
from tests.support.gated_pipeline import GatedPipeline

URL = str


@pytest.fixture(scope="module")
def url() -> Iterator[URL]:
    with serving(create_app(Settings(model="fake"))) as url:
        yield url


@pytest.fixture
def sdk(url: URL) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def file_of(image: Any) -> bytes:
    return base64.b64decode(image.b64_json)


def native(url: URL, accept: str = "image/png", **fields: object) -> bytes:
    response = httpx.post(f"{url}/txt2img", json=fields, headers={"Accept": accept})
    assert response.status_code == 200
    return response.content


def natively_edited(url: URL, image: bytes, accept: str = "image/png", **fields: object) -> bytes:
    form = {name: str(value) for name, value in fields.items()}
    response = httpx.post(f"{url}/img2img", data=form, files={"image": image}, headers={"Accept": accept})
    assert response.status_code == 200
    return response.content


# Generations.


def test_a_picture_is_generated(sdk: OpenAI, url: URL) -> None:
    answer = sdk.images.generate(prompt="a cat", extra_body={"seed": 7})
    assert answer.data is not None
    assert file_of(answer.data[0]) == native(url, prompt="a cat", seed=7)
    assert (answer.size, answer.output_format, answer.background) == ("512x512", "png", "opaque")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (4, 0, 4)


async def test_a_picture_is_generated_by_the_asynchronous_client(url: URL) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as sdk:
        answer = await sdk.images.generate(prompt="a cat", extra_body={"seed": 7, "num_inference_steps": 4})
        edited = await sdk.images.edit(image=png(), prompt="a cat", extra_body={"strength": 1})
    assert answer.data is not None
    assert file_of(answer.data[0]) == native(url, prompt="a cat", seed=7, num_inference_steps=4)
    assert edited.data is not None


def test_several_pictures_are_those_of_following_seeds(sdk: OpenAI, url: URL) -> None:
    answer = sdk.images.generate(prompt="a cat", n=3, extra_body={"seed": 7})
    assert answer.data is not None
    assert [image.model_extra for image in answer.data] == [{"seed": 7}, {"seed": 8}, {"seed": 9}]
    assert [file_of(image) for image in answer.data] == [native(url, prompt="a cat", seed=seed) for seed in (7, 8, 9)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [("auto", (512, 512)), ("1024x1024", (1024, 1024)), ("256x768", (256, 768)), (None, (512,) * 2)],
)
def test_the_size_is_a_name(sdk: OpenAI, size: Any, expected: tuple[int, int]) -> None:
    answer = sdk.images.generate(prompt="a cat", size=size)
    assert answer.data is not None
    assert opened(file_of(answer.data[0])).size == expected
    assert answer.size == f"{expected[0]}x{expected[1]}"


@pytest.mark.parametrize(("output_format", "found"), [("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG")])
def test_the_format_is_chosen(sdk: OpenAI, output_format: Any, found: str) -> None:
    answer = sdk.images.generate(prompt="a cat", output_format=output_format)
    assert answer.data is not None
    assert opened(file_of(answer.data[0])).format == found
    assert answer.output_format == output_format


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_the_compression_is_the_quality(sdk: OpenAI, output_format: Any) -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 100).save(file, "PNG")

    def size_of(quality: int | None) -> int:
        answer = sdk.images.edit(
            image=file.getvalue(),
            prompt="a cat",
            output_format=output_format,
            output_compression=quality,
            extra_body={"seed": 1},
        )
        assert answer.data is not None
        return len(file_of(answer.data[0]))

    assert size_of(0) < size_of(50) < size_of(None) == size_of(90) < size_of(100)


def test_what_may_be_asked_for_in_vain_is_taken(sdk: OpenAI) -> None:
    answer = sdk.images.generate(
        prompt="a cat",
        model="fake",
        background="auto",
        quality="auto",
        response_format="b64_json",
        partial_images=3,
        user="somebody",
        safety_identifier="a5f3",
        stream=False,
    )
    assert answer.data is not None


def test_parameters_that_are_none_are_as_if_left_out(sdk: OpenAI) -> None:
    names = "background model n output_compression output_format quality response_format size stream partial_images svg"
    nothing: dict[str, Any] = dict.fromkeys(names.split())
    assert sdk.images.generate(prompt="a cat", **nothing, moderation=None, style=None).size == "512x512"
    assert sdk.images.edit(image=png((320, 160)), prompt="a cat", **nothing).size == "728x360"


# Edits.


def test_a_picture_is_edited(sdk: OpenAI, url: URL) -> None:
    sent = png((320, 320), "blue")
    fields: dict[str, Any] = {"strength": 0.75, "num_inference_steps": 4}
    answer = sdk.images.edit(image=sent, prompt="a cat", size="320x320", n=2, extra_body={"seed": 3, **fields})
    assert answer.data is not None
    assert [image.model_extra for image in answer.data] == [{"seed": 3}, {"seed": 4}]
    assert [file_of(image) for image in answer.data] == [
        natively_edited(url, sent, prompt="a cat", width=320, height=320, seed=seed, **fields) for seed in (3, 4)
    ]


def test_the_picture_to_edit_may_be_bytes_a_file_a_path_a_tuple_or_a_list_of_one(sdk: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(png())
    with path.open("rb") as file:
        kinds: list[Any] = [png(), file, path, ("one.png", png(), "image/png"), io.BytesIO(png()), [png()]]
        answers = [sdk.images.edit(image=image, prompt="a cat", extra_body={"seed": 1}) for image in kinds]
    pictures = {answer.data[0].b64_json for answer in answers if answer.data}
    assert len(pictures) == 1


def test_an_edited_picture_keeps_its_aspect_unless_told(sdk: OpenAI) -> None:
    sizes: list[Any] = [None, "auto", "128x256"]
    assert [sdk.images.edit(image=png((640, 320)), prompt="", size=size).size for size in sizes] == [
        "728x360",
        "728x360",
        "128x256",
    ]


# Streams.


@pytest.mark.parametrize("partial_images", [None, 0, 3])
def test_a_stream_has_the_finished_picture_and_no_unfinished_ones(sdk: OpenAI, url: URL, partial_images: Any) -> None:
    stream = sdk.images.generate(prompt="a cat", stream=True, partial_images=partial_images, extra_body={"seed": 7})
    (event,) = stream
    assert event.type == "image_generation.completed"
    assert file_of(event) == native(url, prompt="a cat", seed=7)
    assert (event.size, event.output_format, event.quality, event.background) == ("512x512", "png", "auto", "opaque")
    assert event.usage.total_tokens == 4


def test_a_stream_has_an_event_for_each_picture(sdk: OpenAI, url: URL) -> None:
    options: dict[str, Any] = {"n": 2, "safety_identifier": "a5", "output_format": "webp", "extra_body": {"seed": 3}}
    events = list(sdk.images.edit(image=png(), prompt="", stream=True, **options))
    assert [event.type for event in events] == ["image_edit.completed"] * 2
    assert [event.safety_identifier for event in events if event.type == "image_edit.completed"] == ["a5", "a5"]
    assert [file_of(event) for event in events] == [
        natively_edited(url, png(), "image/webp", prompt="", seed=seed) for seed in (3, 4)
    ]
    generated = list(sdk.images.generate(prompt="a cat", stream=True, n=2, extra_body={"seed": 7}))
    assert [file_of(event) for event in generated] == [native(url, prompt="a cat", seed=seed) for seed in (7, 8)]


async def test_a_stream_works_for_the_asynchronous_client(url: URL) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as sdk:
        stream = await sdk.images.generate(prompt="a cat", stream=True)
        assert [event.type async for event in stream] == ["image_generation.completed"]


def test_a_streamed_request_that_fails_has_the_status_of_its_failure(pipeline: GatedPipeline) -> None:
    with (
        serving(create_app(Settings(), load_pipelines=pipeline.load)) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        pipeline.error = InferenceError("It failed.")
        with pytest.raises(openai.InternalServerError, match="It failed"):
            sdk.images.generate(prompt="a cat", stream=True)


# What is refused, and how the SDK's exceptions say so.


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 11}, "n", "less than or equal to 10"),
        ({"size": "500x500"}, "size", "multiples of 8 from 64 to 2048"),
        ({"size": "huge"}, "size", "WIDTHxHEIGHT"),
        ({"size": "512x512,512x512"}, "size", "WIDTHxHEIGHT"),
        ({"size": "2048x2048"}, "size", "4194304 pixels"),
        ({"response_format": "file"}, "response_format", "send b64_json, or url"),
        ({"output_format": "gif"}, "output_format", "png, webp and jpeg"),
        ({"output_compression": 101, "output_format": "webp"}, "output_compression", "less than or equal to 100"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"svg": {"model": "x"}}, "svg", "SVG"),
        ({"frame_count": 3}, "frame_count", "no frames"),
        ({"partial_images": 4}, "partial_images", "less than or equal to 3"),
        ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps", "greater than or equal to 1"),
        ({"extra_body": {"seed": 2**32 - 1}, "n": 2}, "seed", "seed + n - 1"),
        ({"extra_body": {"steps": 1}}, "steps", "say num_inference_steps"),
        ({"extra_body": {"width": 512}}, "width", "say size"),
        ({"extra_body": {"num_images": 2}}, "num_images", "say n."),
        ({"extra_body": {"image": "x"}}, "image", "/v1/images/edits"),
    ],
)
def test_a_generation_is_refused_with_the_parameter_and_the_reason(
    sdk: OpenAI, fields: dict[str, Any], param: str, reason: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.images.generate(**{"prompt": "a cat", **fields})
    assert refused.value.param == param
    assert refused.value.code == "invalid_request"
    assert reason in refused.value.message
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"markup": png()}, "markup", "no meaning here"),
        ({"extra_body": {"strength": 0}}, "strength", "greater than 0"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"extra_body": {"denoising_strength": 0.5}}, "denoising_strength", "say strength"),
    ],
)
def test_an_edit_is_refused_with_the_parameter_and_the_reason(
    sdk: OpenAI, fields: dict[str, Any], param: str, reason: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.images.edit(**{"image": png(), "prompt": "a cat", **fields})
    assert (refused.value.param, refused.value.code) == (param, "invalid_request")
    assert reason in refused.value.message


@pytest.mark.parametrize("number", [2, 16])
def test_several_pictures_to_edit_are_refused_with_the_reason(sdk: OpenAI, number: int) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="Send one image, not several") as refused:
        sdk.images.edit(image=[png()] * number, prompt="a cat")
    assert refused.value.param == "image"


def test_everything_wrong_is_said_at_once(sdk: OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.images.edit(image=[png(), png()], prompt="a cat", n=11, background="transparent", extra_body={"steps": 9})
    faults = refused.value.response.json()["errors"]
    assert {fault["param"] for fault in faults} == {"image", "n", "background", "steps"}


def test_a_size_beyond_the_limit_is_said_with_the_other_reasons(sdk: OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.images.generate(prompt="a cat", size="2048x2048", background="transparent")
    assert [fault["param"] for fault in refused.value.response.json()["errors"]] == ["background", "size"]
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.images.generate(prompt="a cat", size="2048x2048", n=20, model="flux", extra_body={"image_url": "x"})
    names = {fault["param"] for fault in refused.value.response.json()["errors"]}
    assert names == {"size", "n", "model", "image_url"}


# What programs send by habit.


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"quality": "hd"}, "quality"),
        ({"quality": "auto"}, None),
        ({"background": "opaque"}, None),
        ({"background": "blue"}, "background"),
        ({"style": "vivid", "quality": "standard"}, "quality, style"),
        ({"moderation": "low"}, "moderation"),
        ({"extra_body": {"complexity": "low"}}, "complexity"),
        ({"output_compression": 50}, "output_compression"),
        ({"extra_body": {"negative_prompt": "a dog", "guidance_scale": 7.5}}, "guidance_scale, negative_prompt"),
        ({"extra_body": {"guidance_scale": 0, "negative_prompt": ""}}, None),
        ({"extra_body": {"scheduler": "DDIM", "clip_skip": 2}}, "scheduler, clip_skip"),
        ({"extra_body": {"caf\u00e9\r\nX-Evil: 1": 2}}, "caf%C3%A9%0D%0AX-Evil%3A%201"),
    ],
)
def test_what_has_no_effect_is_ignored_and_told(
    sdk: OpenAI, url: URL, fields: dict[str, Any], ignored: str | None
) -> None:
    sent = {"prompt": "a cat", **fields, "extra_body": {"seed": 7, **fields.get("extra_body", {})}}
    raw = sdk.images.with_raw_response.generate(**sent)
    assert raw.headers.get("x-ignored-parameters") == ignored
    answer = raw.parse()
    assert answer.data is not None
    assert file_of(answer.data[0]) == native(url, prompt="a cat", seed=7)
    warnings = (answer.model_extra or {}).get("warnings", [])
    assert len(warnings) == len(ignored.split(", ") if ignored else [])
    assert all(" is ignored: " in warning for warning in warnings)


def test_many_unknown_parameters_are_told_in_a_short_header(sdk: OpenAI) -> None:
    extra = {f"p{number}" * 10: 1 for number in range(500)}
    raw = sdk.images.with_raw_response.generate(prompt="a cat", extra_body=extra)
    assert len(raw.headers["x-ignored-parameters"]) < 3000


def test_more_steps_than_four_are_four_and_told(sdk: OpenAI, url: URL) -> None:
    raw = sdk.images.with_raw_response.generate(prompt="a cat", extra_body={"seed": 7, "num_inference_steps": 20})
    assert raw.headers["x-adjusted-parameters"] == "num_inference_steps=20->4"
    answer = raw.parse()
    assert answer.data is not None
    assert file_of(answer.data[0]) == native(url, prompt="a cat", seed=7, num_inference_steps=4)
    assert answer.model_extra is not None
    (warning,) = answer.model_extra["warnings"]
    assert warning == "num_inference_steps is changed, 20->4: Pictures are made in 1 to 4 steps here."


def test_an_edit_ignores_and_tells_too(sdk: OpenAI, url: URL) -> None:
    raw = sdk.images.with_raw_response.edit(
        image=png(),
        prompt="a cat",
        input_fidelity="high",
        quality="high",
        extra_body={"seed": 3, "strength": 0.3, "num_inference_steps": 30},
    )
    assert raw.headers["x-ignored-parameters"] == "quality, input_fidelity"
    assert raw.headers["x-adjusted-parameters"] == "num_inference_steps=30->4"
    answer = raw.parse()
    assert answer.data is not None
    assert file_of(answer.data[0]) == natively_edited(
        url, png(), prompt="a cat", seed=3, strength=0.3, num_inference_steps=4
    )


def test_a_stream_tells_too(sdk: OpenAI) -> None:
    (event,) = sdk.images.generate(prompt="a cat", stream=True, quality="high")
    assert "quality is ignored" in (event.model_extra or {})["warnings"][0]


def test_a_prompt_that_is_too_long_is_cut_and_told(sdk: OpenAI) -> None:
    raw = sdk.images.with_raw_response.generate(prompt="word " * 1000)
    assert raw.headers["x-adjusted-parameters"] == "prompt=5000->2000 characters"


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"quality": "hd", "style": "vivid", "n": 11}, ["quality", "style", "n"]),
        ({"extra_body": {"num_inference_steps": 20, "foo": 1}}, ["num_inference_steps", "foo"]),
        ({"prompt": "a" * 2001}, ["prompt"]),
        ({"output_compression": 50}, ["output_compression"]),
    ],
)
def test_strict_refuses_what_would_be_ignored(fields: dict[str, Any], params: list[str]) -> None:
    with (
        serving(create_app(Settings(model="fake", strict=True))) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            sdk.images.generate(**{"prompt": "a cat", **fields})
        assert [fault["param"] for fault in refused.value.response.json()["errors"]] == params
        assert sdk.images.generate(prompt="a cat", quality="auto", background="opaque").data


def test_up_to_ten_pictures_are_made(sdk: OpenAI) -> None:
    answer = sdk.images.generate(prompt="a cat", n=10, size="256x256", extra_body={"seed": 1})
    assert answer.data is not None
    assert [image.model_extra for image in answer.data] == [{"seed": seed} for seed in range(1, 11)]


@pytest.mark.parametrize("size", ["1536x1024", "1024x1536", "1792x1024", "1024x1792"])
def test_the_sizes_that_their_clients_offer_work_by_default(sdk: OpenAI, size: Any) -> None:
    answer = sdk.images.generate(prompt="a cat", size=size)
    assert answer.data is not None
    assert "x".join(map(str, opened(file_of(answer.data[0])).size)) == size


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_a_url_has_the_picture_in_it(sdk: OpenAI, output_format: Any) -> None:
    answer = sdk.images.generate(prompt="a cat", response_format="url", output_format=output_format)
    assert answer.data is not None
    assert answer.data[0].b64_json is None
    head, _, encoded = str(answer.data[0].url).partition(",")
    assert head == f"data:image/{output_format};base64"
    assert opened(base64.b64decode(encoded)).format == output_format.upper()


def test_without_a_format_the_clients_of_dall_e_get_a_url_and_all_others_the_file(sdk: OpenAI) -> None:
    for model, as_url in ((None, False), ("fake", False), ("gpt-image-1", False), ("dall-e-2", True)):
        named: dict[str, Any] = {} if model is None else {"model": model}
        answer = sdk.images.generate(prompt="a cat", **named)
        assert answer.data is not None
        assert (answer.data[0].url is not None, answer.data[0].b64_json is None) == (as_url, as_url)


def test_metrics_name_the_whole_route(sdk: OpenAI, url: URL) -> None:
    sdk.images.generate(prompt="a cat")
    assert 'route="/v1/images/generations"' in httpx.get(f"{url}/metrics").text


def test_a_file_that_is_no_picture_is_refused(sdk: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        sdk.images.edit(image=b"no picture", prompt="a cat")
    assert (refused.value.status_code, refused.value.code, refused.value.param) == (415, "unsupported_image", "image")


def test_another_model_is_not_found(sdk: OpenAI) -> None:
    for ask in (
        lambda: sdk.images.generate(prompt="a cat", model="flux"),
        lambda: sdk.images.edit(image=png(), prompt="a cat", model="flux"),
        lambda: sdk.models.retrieve("flux"),
    ):
        with pytest.raises(openai.NotFoundError, match="served model is fake") as refused:
            ask()
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


# Models.


@pytest.mark.parametrize("name", ["dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-2", "fake", ""])
def test_names_that_programs_have_built_in_stand_for_the_served_model(sdk: OpenAI, name: str) -> None:
    raw = sdk.images.with_raw_response.generate(prompt="a cat", model=name)
    assert raw.headers["x-model"] == "fake"
    assert (raw.parse().model_extra or {})["model"] == "fake"
    assert sdk.images.edit(image=png(), prompt="a cat", model=name).data


def test_the_model_is_listed_with_its_licence_and_limits_and_with_its_aliases(sdk: OpenAI) -> None:
    model, *aliases = sdk.models.list()
    assert (model.id, model.object) == ("fake", "model")
    assert model.model_extra is not None
    assert {"license", "limits"} == model.model_extra.keys()
    assert sdk.models.retrieve("fake") == model
    assert {"dall-e-3", "gpt-image-1"} < {alias.id for alias in aliases}
    assert {(alias.model_extra or {})["alias_of"] for alias in aliases} == {"fake"}
    assert sdk.models.retrieve("dall-e-3") in aliases


def test_the_aliases_are_the_operator_s() -> None:
    for setting, listed in (("none", []), ("mine, my/other", ["mine", "my/other"])):
        with (
            serving(create_app(Settings(model="fake", model_aliases=setting))) as url,
            OpenAI(base_url=f"{url}/v1", api_key="none") as sdk,
        ):
            assert [model.id for model in sdk.models.list()] == ["fake", *listed]
            assert all(sdk.images.generate(prompt="a cat", model=name).data for name in listed)
            with pytest.raises(openai.NotFoundError):
                sdk.images.generate(prompt="a cat", model="dall-e-3")


def test_a_model_s_name_may_have_a_slash(pipeline: GatedPipeline) -> None:
    named = replace(pipeline.load(), model="stabilityai/sdxl-turbo")
    with (
        serving(create_app(Settings(model="hf:stabilityai/sdxl-turbo"), load_pipelines=lambda: named)) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none") as sdk,
    ):
        model = sdk.models.retrieve("stabilityai/sdxl-turbo")
        assert model.owned_by == "stabilityai"
        assert model.model_extra is not None
        assert "Stability AI" in model.model_extra["license"]
        assert sdk.images.generate(prompt="a cat", model=model.id).data
        assert sdk.images.generate(prompt="a cat", model="sdxl-turbo").data  # its last part


# Keys, retries, and the log.


def test_the_sdk_s_key_is_the_service_s(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("team: 0123456789abcdef")
    with serving(create_app(Settings(model="fake", api_keys_file=keys))) as url:
        with OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as sdk:
            for ask in (sdk.models.list, lambda: sdk.images.generate(prompt="a cat")):
                with pytest.raises(openai.AuthenticationError, match="does not know this API key") as refused:
                    ask()
                assert refused.value.code == "invalid_api_key"
        with OpenAI(base_url=f"{url}/v1", api_key="0123456789abcdef") as sdk:
            assert list(sdk.models.list())
            assert sdk.images.generate(prompt="a cat").data


def test_the_sdk_comes_back_when_retry_after_says(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="openai")
    settings = Settings(model="fake", rate_limit="1/second")
    with serving(create_app(settings)) as url, OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=3) as sdk:
        assert all(sdk.images.generate(prompt="a cat").data for _ in range(2))
        hasty = sdk.with_options(max_retries=0)
        with pytest.raises(openai.RateLimitError) as refused:
            [hasty.images.generate(prompt="a cat") for _ in range(3)]  # at most one of them begins another second
    assert refused.value.code == "rate_limited"
    assert refused.value.type == "rate_limit_error"
    assert refused.value.response.headers["retry-after"] == "1"
    waits = [record.getMessage() for record in caplog.records if "Retrying request" in record.msg]
    assert waits
    assert all("in 1.000000 seconds" in line for line in waits)


def test_the_sdk_repeats_what_may_succeed_and_not_what_cannot(pipeline: GatedPipeline) -> None:
    with (
        serving(create_app(Settings(), load_pipelines=pipeline.load)) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as sdk,
    ):
        pipeline.calls.clear()
        pipeline.errors = [InferenceError("It failed.")]
        assert sdk.images.generate(prompt="a cat").data
        assert len(pipeline.calls) == 2
        pipeline.calls.clear()
        pipeline.error = DeadPictureError("It is no picture.")
        with pytest.raises(openai.InternalServerError, match="no picture") as failed:
            sdk.images.generate(prompt="a cat")
        assert failed.value.response.headers["x-should-retry"] == "false"
        assert len(pipeline.calls) == 1


# Edits with a mask.

HOLE = (16, 8, 40, 32)


def with_hole(size: tuple[int, int] = (64, 64)) -> bytes:
    """A mask as OpenAI's API has it: what is transparent is to be edited."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), HOLE)
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def white_box(size: tuple[int, int] = (64, 64)) -> bytes:
    mask = Image.new("L", size)
    mask.paste(255, HOLE)
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def natively_inpainted(url: URL, image: bytes, **fields: object) -> bytes:
    form = {"prompt": "a cat", "seed": 7, **fields}
    response = httpx.post(
        f"{url}/inpaint",
        data={name: str(value) for name, value in form.items()},
        files={"image": image, "mask": white_box()},
    )
    assert response.status_code == 200
    return response.content


@pytest.mark.parametrize("mask", [with_hole(), white_box()], ids=["transparent", "white without transparency"])
def test_an_edit_with_a_mask_draws_the_part_that_the_mask_means(sdk: OpenAI, url: URL, mask: bytes) -> None:
    answer = sdk.images.edit(image=png(), mask=mask, prompt="a cat", extra_body={"seed": 7})
    assert answer.data is not None
    assert file_of(answer.data[0]) == natively_inpainted(url, png())
    assert opened(file_of(answer.data[0])).size == (64, 64)


def test_an_edit_with_a_mask_takes_size_steps_and_strength(sdk: OpenAI, url: URL) -> None:
    extra = {"seed": 7, "num_inference_steps": 2, "strength": 0.5}
    answer = sdk.images.edit(
        image=png(),
        mask=with_hole(),
        prompt="a cat",
        size="128x128",
        n=2,
        extra_body=extra,
    )
    fields = {"num_inference_steps": 2, "strength": 0.5, "width": 128, "height": 128}
    assert answer.data is not None
    assert file_of(answer.data[0]) == natively_inpainted(url, png(), **fields)
    assert len(answer.data) == 2


def test_an_edit_with_a_mask_that_draws_nothing_is_refused_with_the_reason(sdk: OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="nothing would be drawn") as refused:
        sdk.images.edit(image=png(), mask=png(color="black"), prompt="a cat")
    assert refused.value.param == "mask"
