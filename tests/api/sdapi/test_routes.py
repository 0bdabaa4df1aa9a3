import asyncio
import base64
import contextlib
import io
import json
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from app.inference.admission import Admission
from app.main import create_app
from app.settings import Settings
from tests.api.test_errors import assert_is_problem
from tests.conftest import PNG_MAGIC, opened, png, running, until
from tests.support.clock import Clock
from tests.support.gated_pipeline import GatedPipeline

Json = dict[str, Any]

ORIGIN = "https://lite.koboldai.net"
ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"

HABITS: Json = {
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_scheduler": None,
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "denoising_strength": 0.7,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "styles": [],
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "batch_size": 1,
    "n_iter": 1,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "sampler_name": "Euler a",
    "scheduler": "automatic",
    "sampler_index": "Euler a",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}
"""What webuiapi 0.9 sends in every request, beside prompt, seed, size, steps and guidance."""

INFO_KEYS = {
    *("prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "subseed"),
    *("all_subseeds", "subseed_strength", "width", "height", "sampler_name", "cfg_scale", "steps", "batch_size"),
    *("restore_faces", "face_restoration_model", "sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash"),
    *("seed_resize_from_w", "seed_resize_from_h", "denoising_strength", "extra_generation_params"),
    *("index_of_first_image", "infotexts", "styles", "job_timestamp", "clip_skip", "version"),
    "is_using_inpainting_conditioning",
}
"""The keys of `info` in AUTOMATIC1111's answers."""

OVERRIDES_OF_KOBOLDAI = {
    "sd_model_checkpoint": "fake",
    "eta_noise_seed_delta": 0,
    "CLIP_stop_at_last_layers": 1,
    "ddim_discretize": "uniform",
    "img2img_fix_steps": False,
    "sd_hypernetwork": "None",
    "inpainting_mask_weight": 1,
    "initial_noise_multiplier": 1,
    "comma_padding_backtrack": 20,
}


async def txt2img(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    return await client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "seed": 7, **fields})


async def img2img(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    sent = {"prompt": "a cat", "seed": 7, "init_images": [text_of(png())], **fields}
    return await client.post("/sdapi/v1/img2img", json=sent)


def text_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


def files_of(response: httpx.Response) -> list[bytes]:
    assert response.status_code == 200, response.text
    return [base64.b64decode(image, validate=True) for image in response.json()["images"]]


def info_of(response: httpx.Response) -> Json:
    assert response.status_code == 200, response.text
    info: Json = json.loads(response.json()["info"])
    return info


def refused(response: httpx.Response) -> dict[str, str]:
    """The reasons of a 422, by parameter."""
    problem = assert_is_problem(response, 422, "invalid_request")
    return {field["param"]: field["detail"] for field in problem["errors"]}


async def native(client: httpx.AsyncClient, **fields: object) -> bytes:
    response = await client.post("/txt2img", json={"prompt": "a cat", "seed": 7, **fields})
    assert response.status_code == 200
    return response.content


async def natively_changed(client: httpx.AsyncClient, file: bytes, **fields: object) -> bytes:
    form = {name: str(value) for name, value in {"prompt": "a cat", "seed": 7, **fields}.items()}
    response = await client.post("/img2img", data=form, files={"image": file})
    assert response.status_code == 200
    return response.content


# What comes back.


async def test_a_prompt_gives_the_picture_that_the_native_route_gives(client: httpx.AsyncClient) -> None:
    response = await txt2img(client, steps=3, width=128, height=64)
    assert files_of(response) == [await native(client, num_inference_steps=3, width=128, height=64)]
    assert response.headers["x-image-size"] == "128x64"
    assert response.headers["cache-control"] == "no-store"
    assert not {"x-ignored-parameters", "x-adjusted-parameters"} & {*response.headers}


async def test_a_picture_gives_the_picture_that_the_native_route_gives(client: httpx.AsyncClient) -> None:
    response = await img2img(client, steps=4, denoising_strength=0.5, width=128, height=64)
    changed = await natively_changed(client, png(), num_inference_steps=4, strength=0.5, width=128, height=64)
    assert files_of(response) == [changed]


async def test_without_parameters_pictures_are_512x512_in_one_step_or_two(client: httpx.AsyncClient) -> None:
    assert files_of(await txt2img(client)) == [await native(client)]
    assert files_of(await img2img(client)) == [await natively_changed(client, png(), strength=0.75)]


async def test_a_prompt_may_be_missing(client: httpx.AsyncClient) -> None:
    response = await client.post("/sdapi/v1/txt2img", json={"seed": 7})
    assert files_of(response) == [await native(client, prompt="")]


async def test_image_to_image_keeps_the_aspect_or_takes_the_size_given(client: httpx.AsyncClient) -> None:
    wide = [text_of(png((200, 100)))]
    assert (await img2img(client, init_images=wide)).headers["x-image-size"] == "728x360"
    assert (await img2img(client, init_images=wide, width=64, height=128)).headers["x-image-size"] == "64x128"


async def test_info_is_text_of_json_with_every_key_that_programs_know(client: httpx.AsyncClient) -> None:
    response = await img2img(client, steps=4, denoising_strength=0.5, width=128, height=64)
    info = info_of(response)
    assert not INFO_KEYS - {*info}
    assert (info["prompt"], info["negative_prompt"], info["sampler_name"]) == ("a cat", "", "Euler a")
    assert (info["seed"], info["all_seeds"], info["steps"], info["cfg_scale"]) == (7, [7], 4, 0)
    assert (info["width"], info["height"], info["denoising_strength"]) == (128, 64, 0.5)
    assert (info["sd_model_name"], info["index_of_first_image"]) == ("fake", 0)
    assert (info["warnings"], info["ignored"], info["adjusted"]) == ([], [], {})
    assert info_of(await txt2img(client))["denoising_strength"] is None


async def test_the_parameters_are_those_that_were_used(client: httpx.AsyncClient) -> None:
    parameters = (await img2img(client, steps=20, cfg_scale=7, sampler_name="DDIM", seed=-1)).json()["parameters"]
    assert (parameters["steps"], parameters["cfg_scale"], parameters["sampler_name"]) == (4, 0, "Euler a")
    assert parameters["seed"] >= 0
    assert parameters["denoising_strength"] == 0.75
    assert "init_images" not in parameters


@pytest.mark.parametrize("prompt", ["a cat, 8k\nin the rain", "café", "一只猫"])
async def test_the_texts_of_info_are_those_in_the_files(client: httpx.AsyncClient, prompt: str) -> None:
    for make in (txt2img, img2img):
        response = await make(client, prompt=prompt, batch_size=2)
        texts = [opened(file).info["parameters"] for file in files_of(response)]
        assert info_of(response)["infotexts"] == texts
        assert [f"Seed: {seed}" in text for seed, text in zip((7, 8), texts, strict=True)] == [True, True]


async def test_info_has_the_texts_even_if_files_may_not() -> None:
    async with running(create_app(Settings(model="fake", image_metadata=False, ai_label=False))) as client:
        response = await txt2img(client)
        assert not opened(files_of(response)[0]).info
        assert "Seed: 7" in info_of(response)["infotexts"][0]


@pytest.mark.parametrize("seed", [-1, None, -1.0, -0.5, -7])
async def test_a_negative_seed_or_none_draws_one_and_tells_it(client: httpx.AsyncClient, seed: object) -> None:
    drawn = [await txt2img(client, seed=seed) for _ in range(2)]
    seeds = [info_of(response)["seed"] for response in drawn]
    assert seeds[0] != seeds[1]
    assert drawn[0].headers["x-seed"] == str(seeds[0])
    assert files_of(await txt2img(client, seed=seeds[0])) == files_of(drawn[0])


@pytest.mark.parametrize("make", [txt2img, img2img])
async def test_iterations_of_batches_are_pictures_of_following_seeds(client: httpx.AsyncClient, make: Any) -> None:
    response = await make(client, batch_size=3, n_iter=2)
    info = info_of(response)
    assert info["all_seeds"] == [7, 8, 9, 10, 11, 12]
    assert len(info["all_prompts"]) == len(info["all_subseeds"]) == len(info["infotexts"]) == 6
    assert info["batch_size"] == 3
    singly = [await make(client, seed=seed) for seed in info["all_seeds"]]
    assert files_of(response) == [file for one in singly for file in files_of(one)]


# What is changed or ignored, and told.


async def test_more_than_4_steps_are_4_and_the_answer_tells_it(client: httpx.AsyncClient) -> None:
    response = await txt2img(client, steps=20)
    assert files_of(response) == [await native(client, num_inference_steps=4)]
    assert response.headers["x-adjusted-parameters"] == "steps=20->4"
    assert "x-ignored-parameters" not in response.headers
    info = info_of(response)
    assert info["steps"] == 4
    assert info["adjusted"] == {"steps": "20->4"}
    assert info["warnings"] == ["steps is changed, 20->4: Pictures are made in 1 to 4 steps here."]


@pytest.mark.parametrize(
    ("sent", "used"),
    [((500, 512), (504, 512)), ((500, 508), (504, 512)), ((65, 2047), (64, 2048)), ((507.5, 99.9), (504, 96))],
)
async def test_sides_become_the_nearest_multiples_of_8_the_larger_of_two(
    client: httpx.AsyncClient, sent: tuple[float, float], used: tuple[int, int]
) -> None:
    response = await txt2img(client, width=sent[0], height=sent[1])
    assert opened(files_of(response)[0]).size == used
    changes = zip(("width", "height"), sent, used, strict=True)
    assert info_of(response)["adjusted"] == {name: f"{a:g}->{b}" for name, a, b in changes if a != b}


@pytest.mark.parametrize(
    ("fields", "adjusted", "steps"),
    [
        ({"denoising_strength": 0.2, "steps": 20}, {"steps": "20->4", "denoising_strength": "0.2->0.25"}, 4),
        ({"denoising_strength": 0.3, "steps": 20}, {"steps": "20->4"}, 4),
        ({"denoising_strength": 0.4, "steps": 1}, {"steps": "1->3"}, 3),
        ({"denoising_strength": 0.3}, {}, 4),
    ],
)
async def test_a_weak_change_gets_steps_and_strength_for_one_step_to_run(
    client: httpx.AsyncClient, fields: Json, adjusted: Json, steps: int
) -> None:
    response = await img2img(client, **fields)
    info = info_of(response)
    assert (info["adjusted"], info["steps"], response.headers["x-steps"]) == (adjusted, steps, "1")


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"cfg_scale": 7}, ["cfg_scale"]),
        ({"cfg_scale": 7.5}, ["cfg_scale"]),
        ({"negative_prompt": "blurry"}, ["negative_prompt"]),
        ({"sampler_name": "DPM++ 2M"}, ["sampler_name"]),
        ({"sampler_index": "Euler"}, ["sampler_index"]),
        ({"sampler_name": "DDIM", "sampler_index": "DDIM"}, ["sampler_name"]),
        ({"scheduler": "Karras"}, ["scheduler"]),
        ({"clip_skip": 2}, ["clip_skip"]),
        ({"enable_hr": True, "hr_scale": 2}, ["enable_hr"]),
        ({"restore_faces": True}, ["restore_faces"]),
        ({"tiling": True}, ["tiling"]),
        ({"styles": ["photo"]}, ["styles"]),
        ({"save_images": True}, ["save_images"]),
        ({"refiner_checkpoint": "refiner"}, ["refiner_checkpoint"]),
        ({"subseed": 5, "subseed_strength": 0.5}, ["subseed_strength"]),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, ["override_settings.CLIP_stop_at_last_layers"]),
        ({"override_settings": {"sd_vae": "ae.safetensors"}}, ["override_settings.sd_vae"]),
        ({"lora": "x", "url": "http://here"}, ["lora", "url"]),
    ],
)
async def test_what_has_no_effect_is_ignored_and_told(
    client: httpx.AsyncClient, fields: Json, ignored: list[str]
) -> None:
    response = await txt2img(client, **fields)
    assert files_of(response) == [await native(client)]
    assert response.headers["x-ignored-parameters"] == ", ".join(ignored)
    info = info_of(response)
    assert info["ignored"] == ignored
    assert [warning.partition(" is ignored: ")[0] for warning in info["warnings"]] == ignored


@pytest.mark.parametrize(
    "fields",
    [
        HABITS,
        {"cfg_scale": 0},
        {"cfg_scale": 1.0},
        {"cfg_scale": None},
        {"sampler_name": "Euler a"},
        {"sampler_name": "k_euler_a"},
        {"sampler_index": "euler ancestral"},
        {"scheduler": "Automatic"},
        {"scheduler": "normal"},
        {"clip_skip": 1},
        {"refiner_checkpoint": "", "refiner_switch_at": 0},
        {"auth": "", "lora": "", "comments": {}},
        {"override_settings": []},
        {"override_settings": OVERRIDES_OF_KOBOLDAI},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_habits_that_change_nothing_are_not_told(client: httpx.AsyncClient, fields: Json) -> None:
    response = await txt2img(client, **fields)
    assert files_of(response) == [await native(client)]
    assert not {"x-ignored-parameters", "x-adjusted-parameters"} & {*response.headers}
    assert info_of(response)["warnings"] == []


async def test_names_of_further_networks_are_left_out_of_the_prompt_and_told(client: httpx.AsyncClient) -> None:
    response = await txt2img(client, prompt="<lora:x:1>, a cat <hypernet:y:0.5>in <b>")
    assert files_of(response) == [await native(client, prompt="a cat in <b>")]
    info = info_of(response)
    assert (info["prompt"], info["ignored"]) == ("a cat in <b>", ["lora"])
    assert "networks" in info["warnings"][0]


async def test_a_prompt_that_is_too_long_is_cut_and_told(client: httpx.AsyncClient) -> None:
    response = await txt2img(client, prompt="x" * 2500)
    assert info_of(response)["prompt"] == "x" * 2000
    assert info_of(response)["adjusted"] == {"prompt": "2500->2000 characters"}


async def test_names_that_are_no_text_are_told_as_a_question_mark(client: httpx.AsyncClient) -> None:
    """JSON can escape a half of a character, which UTF-8 cannot have."""
    response = await client.post("/sdapi/v1/txt2img", content=r'{"prompt": "a cat", "seed": 7, "\ud800": 1}')
    assert files_of(response) == [await native(client)]
    assert (response.headers["x-ignored-parameters"], info_of(response)["ignored"]) == ("%3F", ["?"])
    for body in (r'{"override_settings": {"\ud800": 1}}', r'{"alwayson_scripts": {"\ud800": 1}}'):
        [name] = refused(await client.post("/sdapi/v1/txt2img", content=body))
        assert name.endswith(".?")
    async with running(create_app(Settings(model="fake", strict=True))) as strict:
        for path in ("/sdapi/v1/txt2img", "/sdapi/v1/options"):
            assert [*refused(await strict.post(path, content=r'{"\ud800": 1}'))] == ["?"]


# What is refused.


@pytest.mark.parametrize(
    ("fields", "reasons"),
    [
        ({"batch_size": 11}, {"batch_size": "at most 10 pictures"}),
        ({"batch_size": 2, "n_iter": 6}, {"n_iter": "at most 10 pictures"}),
        ({"batch_size": 10**400}, {"batch_size": "less than or equal to 10"}),
        ({"n_iter": 10**400}, {"n_iter": "less than or equal to 10"}),
        ({"batch_size": 0}, {"batch_size": "greater than or equal to 1"}),
        ({"seed": 2**32 - 2, "batch_size": 3}, {"seed": "seed + batch_size * n_iter - 1"}),
        ({"steps": 0}, {"steps": "greater than or equal to 1"}),
        ({"width": 56}, {"width": "greater than or equal to 64"}),
        ({"height": 2056}, {"height": "less than or equal to 2048"}),
        ({"width": 2048, "height": 1032}, {"width": "at most 2097152"}),
        ({"prompt": ["a cat"]}, {"prompt": "valid string"}),
        ({"num_inference_steps": 2}, {"num_inference_steps": "say steps"}),
        ({"size": "512x512"}, {"size": "say width and height"}),
        ({"mask": "x"}, {"mask": "needs the picture"}),
        ({"script_name": "x/y/z plot"}, {"script_name": "no scripts"}),
        ({"alwayson_scripts": ["controlnet"]}, {"alwayson_scripts": "JSON object"}),
        ({"override_settings": [1]}, {"override_settings": "JSON object"}),
        ({"override_settings": {"sd_model_checkpoint": "v1-5"}}, {"override_settings.sd_model_checkpoint": "fake"}),
        ({"override_settings": {"sd_model_checkpoint": 5}}, {"override_settings.sd_model_checkpoint": "fake"}),
        ({"override_settings": {"eta": 1}}, {"override_settings.eta": "cannot be changed"}),
    ],
)
async def test_what_cannot_be_done_is_refused_with_the_reason(
    client: httpx.AsyncClient, fields: Json, reasons: dict[str, str]
) -> None:
    found = refused(await txt2img(client, **fields))
    assert found.keys() == reasons.keys()
    assert not [name for name, reason in reasons.items() if reason not in found[name]]


async def test_everything_that_is_wrong_is_said_at_once(client: httpx.AsyncClient) -> None:
    response = await img2img(
        client,
        steps="many",
        width=1,
        height=64,
        latent_mask="x",
        script_name="x",
        init_images=[],
        denoising_strength=2,
        batch_size=100,
        override_settings={"sd_model_checkpoint": "other", "other": 1},
        alwayson_scripts={"ADetailer": {"args": [True]}},
        num_inference_steps=2,
    )
    assert refused(response).keys() == {
        *("steps", "width", "latent_mask", "script_name", "init_images", "denoising_strength", "batch_size"),
        *("override_settings.sd_model_checkpoint", "override_settings.other", "alwayson_scripts.ADetailer"),
        "num_inference_steps",
    }


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"eta": 0.3, "s_churn": 5, "s_noise": 0.9}, "eta, s_churn, s_noise"),
        ({"initial_noise_multiplier": 0.5, "distilled_cfg_scale": 7}, "distilled_cfg_scale, initial_noise_multiplier"),
        ({"include_init_images": True, "script_args": [1]}, "include_init_images, script_args"),
        ({"seed_resize_from_h": 512, "clip_skip": 2}, "clip_skip, seed_resize_from_h"),
        ({"sampler_name": "Euler a", "sampler_index": "Euler"}, None),  # the name counts
        (
            {"eta": 1, "s_noise": 1, "subseed": 5, "hr_scale": 2, "seed_resize_from_h": -1, "denoising_strength": 0.7},
            None,
        ),
    ],
)
async def test_a_refinement_that_asks_for_something_is_told(
    client: httpx.AsyncClient, fields: dict[str, object], ignored: str | None
) -> None:
    response = await txt2img(client, **fields)
    assert response.headers.get("x-ignored-parameters") == ignored
    async with running(create_app(Settings(model="fake", strict=True))) as strict:
        assert (await txt2img(strict, **fields)).status_code == (200 if ignored is None else 422)


async def test_a_program_may_do_without_the_pictures(client: httpx.AsyncClient) -> None:
    response = await txt2img(client, send_images=False)
    assert response.json()["images"] == []
    assert info_of(response)["seed"] == 7


@pytest.mark.parametrize(
    "fields", [{"steps": "3", "width": "256", "height": "128", "seed": "7"}, {"batch_size": "1", "n_iter": "1"}]
)
async def test_numbers_may_be_text_as_in_that_server(client: httpx.AsyncClient, fields: dict[str, str]) -> None:
    numbers = {name: int(value) for name, value in fields.items()}
    assert files_of(await txt2img(client, **fields)) == files_of(await txt2img(client, **numbers))


async def test_of_one_side_alone_is_told_that_it_is_not_used(client: httpx.AsyncClient) -> None:
    response = await img2img(client, width=768)
    assert response.headers["x-ignored-parameters"] == "width"
    assert "x-adjusted-parameters" not in response.headers


@pytest.mark.parametrize("name", ["init_images", "image", "mask_image", "latent_mask", "control_image"])
async def test_a_picture_that_text_to_image_would_leave_out_is_refused(client: httpx.AsyncClient, name: str) -> None:
    assert name in refused(await txt2img(client, **{name: "iVBORw0KGgo"}))


async def test_options_that_differ_from_those_there_are_told(client: httpx.AsyncClient) -> None:
    wanted = {"samples_format": "jpg", "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 2}
    response = await client.post("/sdapi/v1/options", json=wanted)
    assert response.headers["x-ignored-parameters"] == "samples_format, CLIP_stop_at_last_layers"
    async with running(create_app(Settings(model="fake", strict=True))) as strict:
        response = await strict.post("/sdapi/v1/options", json=wanted)
        assert refused(response).keys() == {"samples_format", "CLIP_stop_at_last_layers"}


@pytest.mark.parametrize("name", ["fake", "", "dall-e-3", "gpt-image-1", None])
async def test_a_checkpoint_is_the_served_model_under_any_of_its_names(
    client: httpx.AsyncClient, name: str | None
) -> None:
    response = await txt2img(client, override_settings={"sd_model_checkpoint": name})
    assert files_of(response) == [await native(client)]
    assert info_of(response)["sd_model_name"] == "fake"


@pytest.mark.parametrize(
    ("scripts", "refused_script"),
    [
        ({"ControlNet": {"args": [{"module": "depth"}]}}, "ControlNet"),
        ({"controlnet": {"args": [{"enabled": False}, {"enabled": True}]}}, "controlnet"),
        ({"ADetailer": {"args": [True, True, {"ad_model": "face_yolov8n.pt"}]}}, "ADetailer"),
        ({"ControlNet": [{"module": "depth"}]}, "ControlNet"),
        ({"ControlNet": {"args": [{"enabled": False}]}}, None),
        ({"ControlNet": {"args": []}, "other": {}}, None),
        ({}, None),
    ],
)
async def test_extensions_are_refused_by_name_unless_they_are_switched_off(
    client: httpx.AsyncClient, scripts: Json, refused_script: str | None
) -> None:
    response = await txt2img(client, alwayson_scripts=scripts)
    if refused_script is None:
        assert files_of(response) == [await native(client)]
        assert "x-ignored-parameters" not in response.headers
    else:
        assert "ControlNet" in refused(response)[f"alwayson_scripts.{refused_script}"]


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([text_of(png())] * 2, "at most 1 item"),
        ([], "at least 1 item"),
        (None, "required"),
        (text_of(png()), "valid list"),
        ([5], "valid string"),
    ],
    ids=["two", "none", "missing", "text", "number"],
)
async def test_one_init_image_is_needed(client: httpx.AsyncClient, images: object, reason: str) -> None:
    [(name, found)] = refused(await img2img(client, init_images=images)).items()
    assert name.startswith("init_images")
    assert reason in found


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        ("!!!", 422, "invalid_image"),
        ("data:image/png;base64,!!!", 422, "invalid_image"),
        (text_of(png())[:-1], 422, "invalid_image"),
        (text_of(png()[:60]), 422, "invalid_image"),
        (text_of(b"no picture"), 415, "unsupported_image"),
        ("http://example.org/cat.png", 422, "invalid_image"),
        ("", 415, "unsupported_image"),
    ],
)
async def test_an_init_image_that_is_no_picture_is_refused(
    client: httpx.AsyncClient, image: str, status: int, code: str
) -> None:
    assert_is_problem(await img2img(client, init_images=[image]), status, code)


async def test_if_the_service_is_strict_what_would_be_ignored_or_changed_is_refused() -> None:
    async with running(create_app(Settings(model="fake", strict=True))) as client:
        response = await txt2img(
            client,
            prompt="a cat <lora:x:1>",
            steps=20,
            width=500,
            cfg_scale=7,
            negative_prompt="blurry",
            sampler_name="DDIM",
            scheduler="Karras",
            override_settings={"sd_vae": "x"},
            unknown=1,
        )
        assert refused(response).keys() == {
            *("lora", "steps", "width", "cfg_scale", "negative_prompt", "sampler_name", "scheduler", "unknown"),
            "override_settings.sd_vae",
        }
        assert refused(await txt2img(client, prompt="x" * 2001)).keys() == {"prompt"}
        reasons = refused(await img2img(client, denoising_strength=0.2, steps=4))
        assert [*reasons] == ["denoising_strength"]
        assert "int(steps * denoising_strength)" in reasons["denoising_strength"]
        assert refused(await client.post("/sdapi/v1/options", json={"eta": 1})).keys() == {"eta"}
        assert files_of(await txt2img(client, **HABITS)) == [await native(client)]


# The body.


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/json"])
@pytest.mark.parametrize("path", ["txt2img", "img2img", "png-info", "options"])
async def test_json_may_have_any_media_type_or_none(
    client: httpx.AsyncClient, path: str, media_type: str | None
) -> None:
    body = {
        "txt2img": {"prompt": "a cat", "seed": 7},
        "img2img": {"prompt": "a cat", "seed": 7, "init_images": [text_of(png())]},
        "png-info": {"image": text_of(png())},
        "options": {"sd_model_checkpoint": "fake"},
    }[path]
    headers = {} if media_type is None else {"Content-Type": media_type}
    response = await client.post(f"/sdapi/v1/{path}", content=json.dumps(body), headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", ["txt2img", "img2img", "png-info", "options"])
async def test_what_is_not_a_json_object_is_refused(client: httpx.AsyncClient, path: str) -> None:
    async def post(content: bytes) -> httpx.Response:
        return await client.post(f"/sdapi/v1/{path}", content=content)

    for content in (b"no JSON", b"prompt=a+cat", b'{"prompt": "a cat"', b" ", b'{"steps": NaN}', b"\xff"):
        assert_is_problem(await post(content), 400, "malformed_body")
    for content in (b"", b"[]", b'"a cat"', b"null", b'{"prompt": "a", "prompt": "b"}'):
        assert_is_problem(await post(content), 422, "invalid_request")


def noise_png() -> bytes:
    """A PNG of 2.4 MB."""
    pixels = np.random.default_rng(1).integers(0, 256, (900, 900, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


@pytest.fixture(scope="module")
def large() -> bytes:
    return noise_png()


async def test_an_init_image_of_megabytes_is_read(client: httpx.AsyncClient, large: bytes) -> None:
    changed = await natively_changed(client, large, strength=0.75)
    for head in ("", "data:image/png;base64,"):
        assert files_of(await img2img(client, init_images=[head + text_of(large)])) == [changed]


async def test_a_mask_of_megabytes_is_read(client: httpx.AsyncClient, large: bytes) -> None:
    response = await img2img(client, init_images=[text_of(large)], mask=text_of(large), inpaint_full_res=False)
    assert opened(files_of(response)[0]).size == opened(large).size
    two = await img2img(client, init_images=[text_of(large), text_of(large)])
    assert refused(two).keys() == {"init_images"}


async def test_a_body_above_the_limits_is_refused(client: httpx.AsyncClient, large: bytes) -> None:
    too_long = await txt2img(client, prompt="x" * 100_000)
    assert "prompt" in refused(too_long)
    much_beside = await img2img(client, init_images=[text_of(large)], comments=["x" * 9] * 9000)
    assert_is_problem(much_beside, 413, "body_too_large")
    options = await client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "x" * 70_000})
    assert_is_problem(options, 413, "body_too_large")
    async with running(create_app(Settings(model="fake", max_body_bytes=1_000_000))) as small:
        assert_is_problem(await img2img(small, init_images=[text_of(large)]), 413, "body_too_large")


def clear_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (png(), text_of(png())),
        (png(), f"data:image/png;base64,{text_of(png())}"),
        (png(), f"\n data:image/png;base64,{text_of(png())}\r\n\t"),
        (png(), f"  {text_of(png())}\n"),
        (clear_png(), text_of(clear_png())),
    ],
    ids=["base64", "data URL", "data URL with white space", "base64 with white space", "transparent"],
)
async def test_an_init_image_is_base64_or_a_data_url(client: httpx.AsyncClient, file: bytes, text: str) -> None:
    response = await img2img(client, init_images=[text], steps=4)
    changed = await natively_changed(client, file, num_inference_steps=4, strength=0.75)
    assert files_of(response) == [changed]


# Who may ask.


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"alice: {ALICE}\nbob: {BOB}\n")
    return file


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {text_of(f'{user}:{password}'.encode())}"}


ROUTES = [
    ("POST", "txt2img"),
    ("POST", "img2img"),
    ("POST", "png-info"),
    ("POST", "options"),
    ("POST", "interrupt"),
    ("POST", "skip"),
    ("POST", "refresh-checkpoints"),
    ("GET", "options"),
    ("GET", "progress"),
    ("GET", "sd-models"),
    ("GET", "memory"),
    ("GET", "loras"),
]


async def test_keys_come_as_bearer_token_as_x_api_key_or_as_the_password_of_basic(keys_file: Path) -> None:
    async with running(create_app(Settings(model="fake", api_keys_file=keys_file))) as client:
        known = [
            {"Authorization": f"Bearer {ALICE}"},
            {"X-API-Key": BOB},
            basic("anybody", ALICE),
            basic("", BOB),
            {"Authorization": basic("a", ALICE)["Authorization"].replace("Basic", "basic")},
        ]
        unknown = [{}, basic(ALICE, ""), basic("alice", "x"), {"Authorization": "Basic"}, {"Authorization": "Basic !"}]
        body = {"prompt": "a cat", "seed": 7}
        for headers in known:
            assert files_of(await client.post("/sdapi/v1/txt2img", json=body, headers=headers))
        for method, path in ROUTES:
            for headers in unknown:
                response = await client.request(method, f"/sdapi/v1/{path}", headers=headers)
                assert_is_problem(response, 401, "invalid_api_key")
        for method, path in ROUTES[4:]:
            response = await client.request(method, f"/sdapi/v1/{path}", headers=basic("x", ALICE))
            assert response.status_code == 200


@pytest.mark.parametrize("authorization", ["Basic", "Basic ", "Bearer sk-none", "Basic eDp5"])
async def test_without_keys_any_authorization_is_as_good_as_none(client: httpx.AsyncClient, authorization: str) -> None:
    headers = {"Authorization": authorization}
    response = await client.post("/sdapi/v1/txt2img", json={"prompt": "a cat"}, headers=headers)
    assert files_of(response)
    assert (await client.get("/sdapi/v1/options", headers=headers)).status_code == 200


async def test_pages_of_other_sites_may_not_post(client: httpx.AsyncClient) -> None:
    for method, path in ROUTES:
        if method == "POST":
            response = await client.post(f"/sdapi/v1/{path}", json={}, headers={"Origin": ORIGIN})
            assert_is_problem(response, 403, "origin_not_allowed")


async def test_pages_of_an_allowed_origin_can_use_the_api_and_read_its_errors() -> None:
    async with running(create_app(Settings(model="fake", cors_origins=ORIGIN))) as client:
        preflight = await client.options(
            "/sdapi/v1/txt2img",
            headers={
                "Origin": ORIGIN,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "content-type" in preflight.headers["access-control-allow-headers"].lower()
        from_page = {"Origin": ORIGIN}
        made = await client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "steps": 20}, headers=from_page)
        assert files_of(made)
        assert "X-Adjusted-Parameters" in made.headers["access-control-expose-headers"]
        refused_one = await client.post("/sdapi/v1/txt2img", json={"steps": 0}, headers=from_page)
        missing = await client.post("/sdapi/v1/interrogate", json={}, headers=from_page)
        listed = await client.get("/sdapi/v1/sd-models", headers=from_page)
        assert [response.status_code for response in (refused_one, missing, listed)] == [422, 404, 200]
        for response in (made, refused_one, missing, listed):
            assert response.headers["access-control-allow-origin"] == ORIGIN


async def test_the_rate_limit_counts_pictures_only() -> None:
    async with running(create_app(Settings(model="fake", rate_limit="2/hour"))) as client:
        for _ in range(5):
            assert (await client.get("/sdapi/v1/progress")).status_code == 200
        assert files_of(await txt2img(client))
        assert files_of(await img2img(client))
        response = await txt2img(client)
        assert_is_problem(response, 429, "rate_limited")
        assert int(response.headers["retry-after"]) > 0


async def test_the_api_can_be_switched_off() -> None:
    async with running(create_app(Settings(model="fake", sdapi=False))) as client:
        for method, path in ROUTES:
            assert_is_problem(await client.request(method, f"/sdapi/v1/{path}"), 404, "not_found")
        assert "/sdapi/" not in (await client.get("/openapi.json")).text
    async with running(create_app(Settings(model="fake"))) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {f"/sdapi/v1/{path}" for _, path in ROUTES} <= {*paths}


# Options, models and other lists.


async def test_options_that_were_read_can_be_sent_back(client: httpx.AsyncClient) -> None:
    options = (await client.get("/sdapi/v1/options")).json()
    assert options["sd_model_checkpoint"] == "fake"
    assert options["samples_format"] == "png"
    assert "forge_preset" not in options  # its presence means Forge
    for name in ("fake", "dall-e-3", ""):
        response = await client.post("/sdapi/v1/options", json={**options, "sd_model_checkpoint": name})
        assert (response.status_code, response.content) == (200, b"null")
        assert response.headers["content-type"] == "application/json"
        assert "x-ignored-parameters" not in response.headers
    assert (await client.get("/sdapi/v1/options")).json() == options


async def test_another_model_is_refused(client: httpx.AsyncClient) -> None:
    for name in ("v1-5-pruned.safetensors", 5):
        reasons = refused(await client.post("/sdapi/v1/options", json={"sd_model_checkpoint": name}))
        assert "fake" in reasons["sd_model_checkpoint"]


async def test_options_that_cannot_be_set_are_told(client: httpx.AsyncClient) -> None:
    response = await client.post("/sdapi/v1/options", json={"eta_ddim": 0.5, "show_progress_every_n_steps": 0})
    assert (response.status_code, response.content) == (200, b"null")
    assert response.headers["x-ignored-parameters"] == "eta_ddim"


async def test_the_lists_have_what_there_is(client: httpx.AsyncClient) -> None:
    async def listed(name: str) -> Any:
        response = await client.get(f"/sdapi/v1/{name}")
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        return response.json()

    [model] = await listed("sd-models")
    assert (model["title"], model["model_name"], model["filename"]) == ("fake", "fake", "fake")
    assert [sampler["name"] for sampler in await listed("samplers")] == ["Euler a"]
    assert [(one["name"], one["label"]) for one in await listed("schedulers")] == [("automatic", "Automatic")]
    assert [upscaler["name"] for upscaler in await listed("upscalers")] == ["None"]
    assert await listed("scripts") == {"txt2img": [], "img2img": []}
    assert await listed("embeddings") == {"loaded": {}, "skipped": {}}
    assert await listed("cmd-flags") == {}
    for name in (
        *("sd-vae", "sd-modules", "latent-upscale-modes", "loras", "hypernetworks", "face-restorers"),
        *("realesrgan-models", "prompt-styles", "script-info", "extensions"),
    ):
        assert await listed(name) == []


async def test_a_model_of_an_owner_has_its_whole_name_as_title_and_the_last_part_as_name() -> None:
    pipeline = GatedPipeline()
    loaded = replace(pipeline.load(), model="stabilityai/sdxl-turbo", vae="madebyollin/taesdxl")
    async with running(create_app(Settings(model="fake"), load_pipelines=lambda: loaded)) as client:
        [model] = (await client.get("/sdapi/v1/sd-models")).json()
        assert (model["title"], model["model_name"]) == ("stabilityai/sdxl-turbo", "sdxl-turbo")
        for name in model["title"], model["model_name"]:
            response = await client.post("/sdapi/v1/options", json={"sd_model_checkpoint": name})
            assert response.status_code == 200
        assert (await client.get("/sdapi/v1/options")).json()["sd_vae"] == "madebyollin/taesdxl"
        assert [vae["model_name"] for vae in (await client.get("/sdapi/v1/sd-vae")).json()] == ["madebyollin/taesdxl"]


async def test_the_list_of_models_can_be_refreshed(client: httpx.AsyncClient) -> None:
    response = await client.post("/sdapi/v1/refresh-checkpoints")
    assert (response.status_code, response.json()) == (200, None)


async def test_memory_is_that_of_the_host(client: httpx.AsyncClient) -> None:
    memory = (await client.get("/sdapi/v1/memory")).json()
    ram = memory["ram"]
    assert 0 < ram["free"] <= ram["total"]
    assert ram["used"] == ram["total"] - ram["free"]
    assert memory["cuda"]["error"]


# The running request and those that wait.


@dataclass
class Busy:
    """A service whose device is kept busy by one request, `first`, until the gate opens."""

    client: httpx.AsyncClient
    admission: Admission
    pipeline: GatedPipeline
    first: asyncio.Task[httpx.Response]

    async def wait_in_queue(
        self, prompt: str, *, path: str = "/sdapi/v1/txt2img", **headers: str
    ) -> asyncio.Task[httpx.Response]:
        """Send a request and return when it waits for the device."""
        waiting = self.admission.waiting
        task = asyncio.create_task(self.client.post(path, json={"prompt": prompt}, headers=headers))
        await until(lambda: self.admission.waiting > waiting)
        return task

    async def progress(self) -> Json:
        response = await self.client.get("/sdapi/v1/progress")
        assert response.status_code == 200
        progress: Json = response.json()
        return progress

    async def interrupt(self, name: str = "interrupt", **headers: str) -> Json:
        response = await self.client.post(f"/sdapi/v1/{name}", headers=headers)
        assert response.status_code == 200
        answer: Json = response.json()
        return answer

    async def finish(self, *tasks: asyncio.Task[httpx.Response]) -> list[str]:
        """Let the device work, check that these requests get their pictures, and return the prompts that it drew."""
        self.pipeline.gate.set()
        assert [(await task).status_code for task in (self.first, *tasks)] == [200] * (1 + len(tasks))
        return [params.prompt for batch in self.pipeline.calls for params in batch]


@contextlib.asynccontextmanager
async def busy(pipeline: GatedPipeline, headers: dict[str, str] | None = None, **settings: Any) -> AsyncIterator[Busy]:
    app = create_app(Settings(model="fake", **settings), load_pipelines=pipeline.load)
    async with running(app) as client:
        pipeline.close()
        sent = {"prompt": "first", "steps": 4}
        first = asyncio.create_task(client.post("/sdapi/v1/txt2img", json=sent, headers=headers))
        try:
            await asyncio.to_thread(pipeline.entered.acquire)
            yield Busy(client, app.state.context.engine.admission, pipeline, first)
        finally:
            pipeline.gate.set()


async def test_an_idle_service_has_no_progress_and_no_job(client: httpx.AsyncClient) -> None:
    await txt2img(client)
    progress = (await client.get("/sdapi/v1/progress?skip_current_image=true")).json()
    assert (progress["progress"], progress["eta_relative"], progress["textinfo"]) == (0, 0, None)
    assert progress["current_image"] is None
    state = progress["state"]
    assert (state["job_count"], state["job"], state["sampling_step"], state["sampling_steps"]) == (0, "", 0, 0)
    assert not any(state[name] for name in ("skipped", "interrupted", "stopping_generation"))


async def test_progress_grows_with_the_time_of_the_running_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.install(monkeypatch)
    async with busy(GatedPipeline(unit_s=4, sleep=clock.sleep)) as service:
        seen = []
        for _ in range(5):
            progress = await service.progress()
            assert progress["state"]["job_count"] == 1
            assert progress["state"]["job"] == "txt2img"
            assert progress["state"]["sampling_steps"] == 4
            seen.append((progress["progress"], progress["eta_relative"], progress["state"]["sampling_step"]))
            clock.sleep(1.5)
        assert seen == [(0, 4, 0), (0.375, 2.5, 1), (0.75, 1, 3), (0.99, 0, 3), (0.99, 0, 3)]
        await service.finish()
        assert (await service.progress())["state"]["job_count"] == 0


async def test_progress_counts_all_requests_that_are_not_answered(pipeline: GatedPipeline) -> None:
    async with busy(pipeline) as service:
        alone = await service.progress()
        second = await service.wait_in_queue("second")
        third = await service.wait_in_queue("third", path="/txt2img")
        progress = await service.progress()
        assert (alone["state"]["job_count"], progress["state"]["job_count"]) == (1, 3)
        assert progress["eta_relative"] > 0
        assert progress["textinfo"] == "Waiting requests: 2."
        await service.finish(second, third)


@pytest.mark.parametrize("name", ["interrupt", "skip"])
async def test_interrupt_drops_the_only_request_that_waits(pipeline: GatedPipeline, name: str) -> None:
    async with busy(pipeline) as service:
        waiting = await service.wait_in_queue("second")
        assert (await service.interrupt(name))["interrupted"] is True
        dropped = await waiting
        assert_is_problem(dropped, 409, "interrupted")
        assert dropped.headers["x-should-retry"] == "false"
        assert (await service.progress())["state"]["job_count"] == 1
        later = await service.wait_in_queue("third")
        assert await service.finish(later) == ["first", "third"]


@pytest.mark.parametrize("name", ["interrupt", "skip"])
async def test_a_running_call_cannot_be_interrupted(pipeline: GatedPipeline, name: str) -> None:
    async with busy(pipeline) as service:
        answer = await service.interrupt(name)
        assert answer["interrupted"] is False
        assert "cannot be stopped" in answer["detail"]
        assert await service.finish() == ["first"]
        assert (await service.interrupt(name))["interrupted"] is False


async def test_of_several_waiting_requests_interrupt_drops_none(pipeline: GatedPipeline) -> None:
    async with busy(pipeline) as service:
        waiting = [await service.wait_in_queue(prompt) for prompt in ("second", "third")]
        answer = await service.interrupt()
        assert answer["interrupted"] is False
        assert answer["detail"].startswith("2 requests of yours wait")
        assert await service.finish(*waiting) == ["first", "second", "third"]


async def test_interrupt_does_not_touch_requests_of_another_client(pipeline: GatedPipeline, keys_file: Path) -> None:
    alice, bob = {"X-API-Key": ALICE}, basic("bob", BOB)
    async with busy(pipeline, alice, api_keys_file=keys_file) as service:
        of_alice = await service.wait_in_queue("second", **alice)
        assert (await service.interrupt(**bob))["interrupted"] is False
        of_bob = await service.wait_in_queue("third", **bob)
        assert (await service.interrupt(**bob))["interrupted"] is True
        assert_is_problem(await of_bob, 409, "interrupted")
        assert await service.finish(of_alice) == ["first", "second"]


@pytest.mark.parametrize("path", ["/txt2img", "/v1/images/generations"])
async def test_interrupt_does_not_touch_requests_of_other_apis(pipeline: GatedPipeline, path: str) -> None:
    async with busy(pipeline) as service:
        other = await service.wait_in_queue("second", path=path)
        assert (await service.interrupt())["interrupted"] is False
        own = await service.wait_in_queue("third")
        assert (await service.interrupt())["interrupted"] is True
        assert_is_problem(await own, 409, "interrupted")
        assert await service.finish(other) == ["first", "second"]


# What a PNG tells.


LAST_LINE = 'Steps: 20, Sampler: DPM++ 2M, Seed: 5, Lora hashes: "a: b, c: d", Version: v1.10'


async def read_png(client: httpx.AsyncClient, file: bytes) -> Json:
    response = await client.post("/sdapi/v1/png-info", json={"image": text_of(file)})
    assert response.status_code == 200, response.text
    info: Json = response.json()
    return info


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one pixel with these chunks before its end."""
    written = [
        struct.pack(">I4s", len(content), name) + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    ]
    whole = png((1, 1))
    return whole[:-12] + b"".join(written) + whole[-12:]


@pytest.mark.parametrize("prompt", ["a cat, 8k\nin the rain", "café: Größe", "一只猫"])
async def test_the_parameters_of_our_own_pictures_are_read(client: httpx.AsyncClient, prompt: str) -> None:
    made = await img2img(client, prompt=prompt)
    read = await read_png(client, files_of(made)[0])
    assert [read["info"]] == info_of(made)["infotexts"]
    assert read["items"] == {"parameters": read["info"]}
    assert read["parameters"] == {
        "Prompt": prompt,
        "Negative prompt": "",
        "Steps": "2",
        "Sampler": "Euler a",
        "CFG scale": "0",
        "Seed": "7",
        "Size": "512x512",
        "Model": "fake",
        "Denoising strength": "0.75",
    }


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        (
            "a cat,\nblack\nNegative prompt: ugly,\nbad\n" + LAST_LINE,
            {
                "Prompt": "a cat,\nblack",
                "Negative prompt": "ugly,\nbad",
                "Steps": "20",
                "Sampler": "DPM++ 2M",
                "Seed": "5",
                "Lora hashes": "a: b, c: d",
                "Version": "v1.10",
            },
        ),
        ("a cat: black, with eyes: two", {"Prompt": "a cat: black, with eyes: two", "Negative prompt": ""}),
        ("", {"Prompt": "", "Negative prompt": ""}),
    ],
    ids=["with a negative prompt", "prompt only", "nothing"],
)
async def test_the_parameters_of_other_programs_pictures_are_read(
    client: httpx.AsyncClient, text: str, parameters: Json
) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", "another program")
    chunks.add_text("parameters", text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    read = await read_png(client, file.getvalue())
    assert (read["info"], read["parameters"]) == (text, parameters)


async def test_a_png_without_parameters_has_none(client: httpx.AsyncClient) -> None:
    compressed = (b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 1_000_000))
    for file in (png(), png_with((b"tEXt", b"Comment\0a cat")), png_with(compressed), PNG_MAGIC):
        assert await read_png(client, file) == {"info": "", "items": {}, "parameters": {}}


async def test_what_is_no_png_is_refused_by_its_name(client: httpx.AsyncClient) -> None:
    async def problem(sent: Json, status: int, code: str) -> Json:
        return assert_is_problem(await client.post("/sdapi/v1/png-info", json=sent), status, code)

    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    for file in (jpeg.getvalue(), b"text", b""):
        found = await problem({"image": text_of(file)}, 415, "unsupported_image")
        assert found["error"]["param"] == "image"
    found = await problem({"image": "not base64!"}, 422, "invalid_image")
    assert found["error"]["param"] == "image"
    for sent in ({}, {"image": None}, {"image": 5}, {"images": text_of(png())}):
        found = await problem(sent, 422, "invalid_request")
        assert found["error"]["param"] == "image"


async def test_of_a_text_of_megabytes_64_kib_are_read(client: httpx.AsyncClient) -> None:
    file = png_with((b"tEXt", b"parameters\0" + b"x" * (4 << 20)))
    read = await read_png(client, file)
    assert read["info"] == "x" * ((1 << 16) - len("parameters\0"))
    cut = png_with((b"iTXt", b"parameters\0\0\0\0\0" + "一".encode() * (1 << 20)))
    assert (await read_png(client, cut))["info"].startswith("一一")


@pytest.mark.parametrize("unit", [" ", "a", ",", ", ", "a: ", 'a:"', ',a:"\\', '\\"', "a:b,"])
async def test_no_text_takes_long_to_read(client: httpx.AsyncClient, unit: str) -> None:
    """A search that tries every place in the text again for every other one would take hours."""
    text = unit * (60_000 // len(unit))
    for whole in (text, f"a cat\n{text}", f'Steps: 1, Seed: 2, Size: 3, x: "{text}'):
        assert (await read_png(client, png_with((b"tEXt", b"parameters\0" + whole.encode()))))["info"] == whole


async def test_many_chunks_are_refused(client: httpx.AsyncClient) -> None:
    file = png_with(*[(b"tEXt", b"")] * 65_536)
    response = await client.post("/sdapi/v1/png-info", json={"image": text_of(file)})
    assert_is_problem(response, 422, "invalid_image")


# A part of a picture.

BOX = (16, 8, 40, 32)


def mask_file(mode: str = "L") -> bytes:
    """A white box on black; with opacity, a black box on nothing."""
    mask = Image.new(mode, (64, 64))
    mask.paste(255 if mode == "L" else (0, 0, 0, 255), BOX)
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


async def natively_inpainted(client: httpx.AsyncClient, mask: bytes | None = None, **fields: object) -> bytes:
    form = {"prompt": "a cat", "seed": 7, "strength": 0.75, "feather": 8, "padding": 0, **fields}
    response = await client.post(
        "/inpaint",
        data={name: str(value) for name, value in form.items() if value is not None},
        files={"image": png(), "mask": mask or mask_file()},
    )
    assert response.status_code == 200, response.text
    return response.content


@pytest.mark.parametrize("mode", ["L", "RGBA"])
async def test_a_mask_gives_the_picture_that_the_native_route_gives(client: httpx.AsyncClient, mode: str) -> None:
    response = await img2img(client, mask=text_of(mask_file(mode)))
    assert files_of(response) == [await natively_inpainted(client)]
    assert "x-adjusted-parameters" not in response.headers


@pytest.mark.parametrize(
    ("sent", "native"),
    [
        ({"mask_blur": 0}, {"feather": 0}),
        ({"inpainting_fill": 2}, {"fill": "noise"}),
        ({"inpainting_fill": 1}, {"fill": "original"}),
        ({"inpaint_full_res": False}, {"padding": None}),
        ({"inpaint_full_res": 0}, {"padding": None}),
        ({"inpaint_full_res": 1, "inpaint_full_res_padding": 16}, {"padding": 16}),
        ({"steps": 2, "denoising_strength": 0.5}, {"num_inference_steps": 2, "strength": 0.5}),
        ({"inpaint_full_res": False, "width": 128, "height": 128}, {"padding": None, "width": 128, "height": 128}),
        ({"mask_round": False, "mask_blur_x": 4, "mask_blur_y": 4}, {}),
        ({"mask_blur_x": 16, "mask_blur_y": 16}, {"feather": 32}),
    ],
)
async def test_parameters_of_inpainting_have_their_effect(client: httpx.AsyncClient, sent: Json, native: Json) -> None:
    response = await img2img(client, mask=text_of(mask_file()), **sent)
    assert files_of(response) == [await natively_inpainted(client, **native)]


async def test_an_inverted_mask_draws_what_is_black(client: httpx.AsyncClient) -> None:
    inverted = ImageOps.invert(opened(mask_file()))
    file = io.BytesIO()
    inverted.save(file, "PNG")
    for value in (1, True):
        response = await img2img(client, mask=text_of(mask_file()), inpainting_mask_invert=value)
        assert files_of(response) == [await natively_inpainted(client, file.getvalue())]


@pytest.mark.parametrize(("sent", "change"), [(0, "0->1"), (3, "3->2")])
async def test_a_fill_that_is_not_there_becomes_the_nearest_and_is_told(
    client: httpx.AsyncClient, sent: int, change: str
) -> None:
    response = await img2img(client, mask=text_of(mask_file()), inpainting_fill=sent)
    assert response.headers["x-adjusted-parameters"] == f"inpainting_fill={change}"


@pytest.mark.parametrize("mask", [None, "", "None"])
async def test_no_mask_is_image_to_image_whatever_refines_it(client: httpx.AsyncClient, mask: str | None) -> None:
    response = await img2img(client, mask=mask, mask_blur=4, inpainting_fill=1, inpaint_full_res=True)
    assert files_of(response) == [await natively_changed(client, png(), strength=0.75)]
    assert "x-ignored-parameters" not in response.headers


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"mask": "%"}, "mask"),
        ({"mask_blur": 65}, "mask_blur"),
        ({"inpainting_fill": 4}, "inpainting_fill"),
        ({"inpaint_full_res_padding": -1}, "inpaint_full_res_padding"),
        ({"inpaint_full_res": "yes"}, "inpaint_full_res"),
        ({"inpainting_mask_invert": 2}, "inpainting_mask_invert"),
    ],
)
async def test_a_wrong_parameter_of_inpainting_is_refused(client: httpx.AsyncClient, fields: Json, name: str) -> None:
    response = await img2img(client, **{"mask": text_of(mask_file()), **fields})
    assert response.status_code == 422, response.text
    assert name in {fault["param"] for fault in response.json().get("errors", [response.json()["error"]])}


async def test_a_blur_that_differs_by_axis_is_told(client: httpx.AsyncClient) -> None:
    response = await img2img(client, mask=text_of(mask_file()), mask_blur=4, mask_blur_x=4, mask_blur_y=30)
    assert response.headers["x-ignored-parameters"] == "mask_blur_y"


async def test_a_fault_of_a_file_names_the_parameter_that_has_it(client: httpx.AsyncClient) -> None:
    response = await img2img(client, init_images=["AAAA"])
    assert response.json()["error"]["param"] == "init_images"


async def test_a_tag_that_never_ends_is_text(client: httpx.AsyncClient) -> None:
    """A pattern that tried every division of it would take minutes for 60 KB."""
    response = await txt2img(client, prompt="<lora:" + "a" * 60_000)
    assert response.status_code == 200
