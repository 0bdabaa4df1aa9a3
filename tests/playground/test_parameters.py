"""Parameters that the page reads from pictures' files, and archives that it makes of pictures."""

import base64
import io
import zipfile
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import png
from tests.playground.conftest import OpenPlayground, Visit

PROMPTS = [
    'a "fox", it\'s red: x\nSteps: 1, Seed: 2, Size: 64x64\n\n\\ {n} </>',  # Latin-1, in tEXt
    "狐狸, 雪、🦊 café\r\n\tsecond line ",  # UTF-8, in iTXt
    "",
]


def read_in_page(visit: Visit, data: bytes) -> dict[str, Any] | None:
    """Return what the page's `readParameters` gives for a file."""
    made: dict[str, Any] | None = visit.page.evaluate(
        """async (data) => {
            const { readParameters } = await import("/playground/parameters.js");
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            return readParameters(new Blob([bytes]));
        }""",
        base64.b64encode(data).decode(),
    )
    return made


def test_the_page_reads_how_the_service_made_a_picture_as_it_was_requested(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    for prompt in PROMPTS:
        made = {"prompt": prompt, "num_inference_steps": 3, "seed": 2**32 - 1}
        drawn = httpx.post(f"{visit.url}/txt2img", json={**made, "width": 768, "height": 512})
        expected = {"prompt": prompt, "steps": 3, "seed": 2**32 - 1, "size": "768x512"}
        assert read_in_page(visit, drawn.content) == expected
        fields = {**made, "strength": 0.34, "width": 256, "height": 320}  # of three steps, one runs
        redrawn = httpx.post(f"{visit.url}/img2img", data=fields, files={"image": png()})
        assert read_in_page(visit, redrawn.content) == {**expected, "size": "256x320", "strength": 0.34}
    assert read_in_page(visit, png()) is None


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("prompt", ["a fox, café \x93\x94\nin snow", "狐狸, 雪 🦊\n第二行"])
def test_the_page_reads_how_stable_diffusion_webui_made_a_picture(
    open_playground: OpenPlayground, prompt: str, compressed: bool
) -> None:
    settings = (
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 0, Size: 512x768, "
        'Model hash: 31e35c80fc, Model: sd_xl, Denoising strength: 1, Lora hashes: "a: 1, Seed: 9", Version: v1.10.1'
    )
    info = PngInfo()
    info.add_text("parameters", f"{prompt}\nNegative prompt: dogs, cats\n{settings}", zip=compressed)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    expected = {"prompt": prompt, "steps": 20, "seed": 0, "size": "512x768", "strength": 1}
    assert read_in_page(open_playground(), file.getvalue()) == expected


def test_an_archive_that_the_page_makes_opens_elsewhere(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    files = [("turbo-5.png", png()), ("turbo-5.png", png(color="blue")), ("狐狸.txt", b""), ("all", bytes(range(256)))]
    made = visit.page.evaluate(
        """async (files) => {
            const { zip } = await import("/playground/zip.js");
            const blobs = files.map(([name, data]) => {
                const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
                return { name, blob: new Blob([bytes]) };
            });
            const packed = new Uint8Array(await (await zip(blobs)).arrayBuffer());
            return btoa(String.fromCharCode(...packed));
        }""",
        [[name, base64.b64encode(data).decode()] for name, data in files],
    )
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(made))) as archive:
        assert archive.testzip() is None  # checksums and headers
        assert archive.namelist() == ["turbo-5.png", "turbo-5 (2).png", "狐狸.txt", "all"]
        assert [archive.read(entry) for entry in archive.infolist()] == [data for _, data in files]
