"""POST /inpaint with the fake model, whose picture is known: its pattern over the picture, where the mask draws."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app.main import create_app
from app.settings import Settings
from tests.conftest import opened, png, running

Pixels = npt.NDArray[np.int64]

PHOTO = Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 40).convert("RGB")
BOX = (100, 60, 180, 120)


def file_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mask_of(size: tuple[int, int], box: tuple[int, int, int, int], level: int = 255) -> bytes:
    mask = Image.new("L", size)
    mask.paste(level, box)
    return file_of(mask)


MASK = mask_of(PHOTO.size, BOX)


async def inpaint(
    client: httpx.AsyncClient,
    image: bytes | None = None,
    mask: bytes | None = MASK,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> httpx.Response:
    data = {name: str(value) for name, value in {"prompt": "a cat", "seed": 7, **fields}.items()}
    files = {"image": file_of(PHOTO) if image is None else image}
    if mask is not None:
        files["mask"] = mask
    return await client.post("/inpaint", data=data, files=files, headers=headers)


def pixels(image: Image.Image | bytes) -> Pixels:
    picture = opened(image) if isinstance(image, bytes) else image
    return np.asarray(picture.convert("RGB")).astype(np.int64)


def beyond(size: tuple[int, int], box: tuple[int, int, int, int], by: int) -> npt.NDArray[np.bool_]:
    """Where a picture of this size is more than `by` pixels away from the box."""
    away = np.ones(size[::-1], bool)
    away[max(0, box[1] - by) : box[3] + by, max(0, box[0] - by) : box[2] + by] = False
    return away


async def test_the_masked_part_is_drawn_and_all_else_keeps_its_pixels(client: httpx.AsyncClient) -> None:
    response = await inpaint(client)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-image-size"] == "300x200"
    assert response.headers["x-steps"] == "4"
    assert response.headers["server-timing"].startswith("decode;dur=")
    made, before = pixels(response.content), pixels(PHOTO)
    away = beyond(PHOTO.size, BOX, 16)
    assert (made[away] == before[away]).all()
    inside = ~beyond(PHOTO.size, BOX, 0)
    assert (made[inside] != before[inside]).mean() > 0.9


@pytest.mark.parametrize("feather", [0, 8, 40])
async def test_pixels_beyond_the_feather_are_kept_and_within_it_they_blend(
    client: httpx.AsyncClient, feather: int
) -> None:
    made, before = pixels((await inpaint(client, feather=feather)).content), pixels(PHOTO)
    assert (made == before)[beyond(PHOTO.size, BOX, feather)].all()
    ring = beyond(PHOTO.size, BOX, 0) & ~beyond(PHOTO.size, BOX, feather)
    assert ring.any() == (made != before)[ring].any() == (feather > 0)


async def test_the_transparent_parts_are_drawn_without_a_mask(client: httpx.AsyncClient) -> None:
    clear = PHOTO.copy()
    clear.putalpha(Image.eval(opened(MASK), lambda level: 255 - level))
    made, before = pixels((await inpaint(client, file_of(clear), None)).content), pixels(PHOTO)
    assert (made == before)[beyond(PHOTO.size, BOX, 16)].all()
    assert (made != before)[~beyond(PHOTO.size, BOX, 0)].mean() > 0.9


async def test_an_opaque_picture_without_a_mask_is_rejected(client: httpx.AsyncClient) -> None:
    response = await inpaint(client, None, None)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "mask")
    assert "Send a mask" in response.json()["detail"]


async def test_a_black_mask_is_rejected(client: httpx.AsyncClient) -> None:
    response = await inpaint(client, mask=png((300, 200), "black"))
    assert (response.status_code, response.json()["error"]["param"]) == (422, "mask")


async def test_a_mask_of_another_aspect_is_rejected_with_both_sizes(client: httpx.AsyncClient) -> None:
    response = await inpaint(client, mask=png((200, 200), "white"))
    assert response.status_code == 422
    assert "The mask has 200x200 pixels, and the picture has 300x200" in response.json()["detail"]


@pytest.mark.parametrize("name", ["image", "mask"])
async def test_a_damaged_file_is_rejected_by_its_field(client: httpx.AsyncClient, name: str) -> None:
    damaged: dict[str, Any] = {name: file_of(PHOTO)[:200]}
    response = await inpaint(client, **damaged)
    assert (response.status_code, response.json()["error"]["param"]) == (422, name)


async def test_a_large_picture_keeps_its_own_size_and_its_pixels(client: httpx.AsyncClient) -> None:
    photo = PHOTO.resize((1800, 1200), Image.Resampling.NEAREST)
    box = (300, 300, 700, 600)
    response = await inpaint(client, file_of(photo), mask_of(photo.size, box))
    made = pixels(response.content)
    assert response.headers["x-image-size"] == "1800x1200"
    assert (made == pixels(photo))[beyond(photo.size, box, 16)].all()


async def test_padding_draws_only_the_masked_part_at_full_resolution(client: httpx.AsyncClient) -> None:
    """The fake's pattern has 8x8 fields: their size tells what was drawn."""
    photo, box = Image.new("RGB", (1600, 1600), "grey"), (400, 400, 464, 464)
    fields: dict[str, Any] = {"image": file_of(photo), "mask": mask_of(photo.size, box), "feather": 0}
    whole = pixels((await inpaint(client, **fields)).content)[400:464, 400:464]
    only = pixels((await inpaint(client, **fields, padding=0)).content)[400:464, 400:464]
    assert np.ptp(only, axis=(0, 1)).sum() > 2 * np.ptp(whole, axis=(0, 1)).sum()


async def test_a_size_scales_and_crops_the_picture_as_for_image_to_image(client: httpx.AsyncClient) -> None:
    response = await inpaint(client, width=128, height=128)
    assert response.headers["x-image-size"] == "128x128"
    response = await inpaint(client, width=128, height=128, padding=8)
    assert response.headers["x-image-size"] == "300x200"


@pytest.mark.parametrize(
    ("extend", "size", "corner"),
    [("64", (428, 328), (64, 64)), ("0,128,0,0", (428, 200), (0, 0)), ("10, 20, 30, 40", (360, 240), (40, 10))],
)
async def test_extending_adds_margins_around_the_picture_s_own_pixels(
    client: httpx.AsyncClient, extend: str, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    response = await inpaint(client, None, None, extend=extend, feather=0)
    assert response.status_code == 200, response.text
    made = pixels(response.content)
    assert made.shape[:2] == size[::-1]
    x, y = corner
    assert (made[y : y + 200, x : x + 300] == pixels(PHOTO)).all()


@pytest.mark.parametrize("extend", ["-1", "1 2", "1,2", "1,2,3", "1,2,3,4,5", "x", "2049", "3000", "1e2", "٣"])
async def test_an_extend_that_is_no_margin_is_rejected(client: httpx.AsyncClient, extend: str) -> None:
    response = await inpaint(client, extend=extend)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "extend")
    assert "top,right,bottom,left" in response.json()["detail"]


async def test_a_picture_that_is_too_large_when_extended_is_rejected() -> None:
    async with running(create_app(Settings(model="fake", max_upload_pixels=300 * 300))) as client:
        response = await inpaint(client, None, None, extend=64)
        assert (response.status_code, response.json()["error"]["param"]) == (413, "extend")


async def test_the_rule_of_steps_and_strength_holds_and_the_steps_are_told(client: httpx.AsyncClient) -> None:
    response = await inpaint(client, num_inference_steps=4, strength=0.5, headers={"Accept": "application/json"})
    parameters = response.json()["parameters"]
    assert (parameters["mode"], parameters["effective_steps"], parameters["strength"]) == ("inpaint", 2, 0.5)
    response = await inpaint(client, num_inference_steps=2, strength=0.4)
    assert "the smallest strength that works is 0.5" in response.json()["detail"]


@pytest.mark.parametrize(
    ("field", "value"), [("padding", -1), ("padding", 4000), ("feather", 129), ("fill", "grey"), ("mask", "x")]
)
async def test_a_field_out_of_bounds_is_rejected(client: httpx.AsyncClient, field: str, value: object) -> None:
    fields: dict[str, Any] = {field: value}
    if field == "mask":
        data = {"prompt": "a cat", "mask": "x"}
        response = await client.post("/inpaint", data=data, files={"image": png()})
    else:
        response = await inpaint(client, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (422, field)


async def test_the_mask_under_another_service_s_name_is_told_the_right_one(client: httpx.AsyncClient) -> None:
    response = await inpaint(client, mask_image="x")
    fault = response.json()["errors"][0]
    assert (response.status_code, fault["param"]) == (422, "mask_image")
    assert fault["detail"] == "There is no such parameter here; say mask."


async def test_several_pictures_share_the_kept_pixels(client: httpx.AsyncClient) -> None:
    response = await inpaint(client, num_images=3, headers={"Accept": "application/json"})
    made = [pixels(base64.b64decode(image["b64"])) for image in response.json()["images"]]
    away = beyond(PHOTO.size, BOX, 16)
    assert (made[0][away] == made[2][away]).all()
    assert (made[0] != made[1]).any()


@pytest.mark.parametrize("media_type", ["image/webp", "image/jpeg"])
async def test_other_formats_have_the_finished_picture(client: httpx.AsyncClient, media_type: str) -> None:
    response = await inpaint(client, headers={"Accept": media_type})
    assert opened(response.content).size == PHOTO.size


async def test_the_file_says_how_the_part_was_drawn(client: httpx.AsyncClient) -> None:
    response = await inpaint(client, padding=32, feather=8, fill="noise", strength=0.75)
    text = opened(response.content).info["parameters"]
    assert "Size: 300x200, Model: fake, Denoising strength: 0.75, Mask blur: 8, Masked content: latent noise" in text
    assert text.endswith("Inpaint area: Only masked, Masked area padding: 32")


async def test_a_white_part_that_a_size_crops_away_is_said_to_be_outside(client: httpx.AsyncClient) -> None:
    mask = mask_of((400, 100), (0, 0, 20, 100))
    response = await inpaint(client, png((400, 100)), mask, width=64, height=64)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "mask")
    assert "not within 64x64" in response.json()["detail"]


async def test_more_pixels_than_an_answer_may_have_are_refused_before_they_are_drawn() -> None:
    async with running(create_app(Settings(model="fake", max_upload_pixels=1 << 22, max_pixels=1 << 20))) as client:
        image, mask = png((2048, 1024)), mask_of((2048, 1024), (0, 0, 64, 64))
        response = await inpaint(client, image, mask, num_images=4, headers={"Accept": "application/json"})
        assert response.status_code == 200
        image, mask = png((2048, 2048)), mask_of((2048, 2048), (0, 0, 64, 64))
        response = await inpaint(client, image, mask, num_images=3, headers={"Accept": "application/json"})
        assert response.status_code == 422
        assert "at most 2" in response.json()["detail"]
