"""A mode that the service does not have is served by its params alone. Only its name is another mode's."""

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from app.images.decoding import decode_image
from app.images.sizes import Size
from app.inference.admission import Admission
from app.inference.engine import Engine
from app.inference.generation import Encoding, Generated, Generation, Observer
from app.main import make_registry
from app.modes.fields import Uploads
from app.modes.img2img import Img2ImgParams, PictureParams
from app.pipelines.base import GenerationParams, Mode
from app.settings import Settings
from tests.conftest import opened

PICTURE = Image.effect_mandelbrot((128, 64), (-2, -1, 1, 1), 30).convert("RGB")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MirroredParams(PictureParams):
    """A picture drawn in a mirror, from a picture: it starts mirrored, and is mirrored back."""

    mode: ClassVar[Mode] = Mode.IMG2IMG

    image: Image.Image

    @property
    def start(self) -> Image.Image:
        return ImageOps.mirror(self.image)

    def finish(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return pixels[:, ::-1]

    @property
    def metadata(self) -> Mapping[str, object]:
        return {"Mirrored": True}

    @classmethod
    def sample(cls, size: tuple[int, int], *, prompt: str, seed: int) -> Self:
        return cls(prompt=prompt, seed=seed, num_inference_steps=2, strength=0.5, image=PICTURE.resize(size))


class Mirrored:
    """The fields of a request."""

    size_param: ClassVar[str] = "width"
    upload_params: ClassVar[Mapping[str, str]] = {}
    chosen_size = Size(128, 64)

    def to_params(self, uploads: Uploads, settings: Settings) -> list[MirroredParams]:
        image = decode_image(uploads["image"](), self.chosen_size, settings)
        return [MirroredParams(prompt="a cat", seed=7, num_inference_steps=2, strength=0.5, image=image)]


class Plain(Mirrored):
    """Image to image of the mirrored picture."""

    def to_params(self, uploads: Uploads, settings: Settings) -> list[GenerationParams]:  # type: ignore[override] # another mode
        image = ImageOps.mirror(decode_image(uploads["image"](), self.chosen_size, settings))
        return [Img2ImgParams(prompt="a cat", seed=7, num_inference_steps=2, strength=0.5, image=image)]


async def test_a_new_mode_is_queued_drawn_finished_and_described_by_its_params(tiny_folder: Path) -> None:
    settings = Settings(model=str(tiny_folder), device="cpu", batching="off")
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    uploads = {"image": partial(bytes, file.getvalue())}
    with ThreadPoolExecutor(1) as codec_threads:
        async with make_registry(settings, warm_up=False) as registry:
            engine = Engine(registry, Admission(registry, max_queue=0, deadline_s=60), on_device_lost=lambda _: None)
            generation = Generation(engine, settings, codec_threads=codec_threads)

            async def made(fields: Mirrored) -> Generated:
                return await generation.from_uploads(fields, uploads, encoding=Encoding(), observer=Observer())

            mirrored, plain = await made(Mirrored()), await made(Plain())
    picture, other = (np.asarray(opened(each.files[0])) for each in (mirrored, plain))
    assert (picture == other[:, ::-1]).all()
    assert "Mirrored: True" in opened(mirrored.files[0]).info["parameters"]
