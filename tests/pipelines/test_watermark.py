import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from diffusers.pipelines.stable_diffusion_xl.watermark import WATERMARK_BITS
from PIL import Image

from app.errors import StartError
from app.main import create_app
from app.pipelines.watermark import load_watermark
from app.settings import Settings
from tests.conftest import opened, running

Pixels = npt.NDArray[np.uint8]

DEMO = Path(__file__).parents[2] / "docs" / "demo.png"


@pytest.fixture
def photo() -> Pixels:
    """A picture with some grain, as the watermark needs."""
    with Image.open(DEMO) as image:
        return np.asarray(image.convert("RGB").crop((0, 690, 256, 946)).resize((512, 384)))


@pytest.fixture
def imwatermark() -> Any:
    """The library, where it is installed: OpenCV and what it needs of the system are too much to ask of everybody."""
    return pytest.importorskip("imwatermark", exc_type=ImportError)


async def txt2img(client: httpx.AsyncClient) -> Pixels:
    response = await client.post("/txt2img", json={"prompt": "a cat", "seed": 7})
    return np.asarray(opened(response.content))


def test_the_library_reads_the_watermark_back_and_the_picture_looks_the_same(photo: Pixels, imwatermark: Any) -> None:
    decoder = imwatermark.WatermarkDecoder("bits", len(WATERMARK_BITS))

    def read(pixels: Pixels) -> list[int]:
        return [int(bit) for bit in decoder.decode(np.ascontiguousarray(pixels[..., ::-1]), "dwtDct")]

    marked = load_watermark()(photo)
    assert read(marked) == WATERMARK_BITS != read(photo)
    assert np.abs(marked.astype(int) - photo).mean() < 1


@pytest.mark.usefixtures("imwatermark")
def test_the_watermark_depends_on_the_picture_alone_whoever_else_is_marking(photo: Pixels) -> None:
    mark = load_watermark()
    pictures = [np.roll(photo, shift, axis=1) for shift in range(8)]
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(mark, pictures))
    assert all(np.array_equal(one, mark(picture)) for one, picture in zip(at_once, pictures, strict=True))


@pytest.mark.usefixtures("imwatermark")
@pytest.mark.parametrize(("width", "height", "marked"), [(256, 248, False), (1024, 64, True), (256, 256, True)])
def test_pictures_under_256x256_are_left_as_they_are(photo: Pixels, width: int, height: int, *, marked: bool) -> None:
    picture = np.asarray(Image.fromarray(photo).resize((width, height)))
    assert np.array_equal(load_watermark()(picture), picture) != marked


@pytest.mark.usefixtures("imwatermark")
async def test_the_service_marks_pictures_only_when_told_to_even_where_the_package_is_installed() -> None:
    async with running(create_app(Settings(model="fake"))) as client:
        plain = await txt2img(client)
    async with running(create_app(Settings(model="fake", watermark=True))) as client:
        marked, again = await txt2img(client), await txt2img(client)
    assert np.array_equal(marked, load_watermark()(plain))
    assert np.array_equal(marked, again)
    assert not np.array_equal(marked, plain)


async def test_a_service_that_is_to_mark_pictures_and_cannot_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imwatermark", None)
    app = create_app(Settings(model="fake", watermark=True))
    with pytest.raises(StartError, match=r"sdxl-turbo-server\[watermark\]"):
        async with running(app):
            pass
