"""Inpainting: a part of a picture is drawn anew from a prompt, and the rest keeps its pixels."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from PIL import Image, ImageChops
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from app.errors import ImageTooLargeError, InvalidImageError, InvalidRequestError
from app.images.decoding import Pixels, decode_whole
from app.images.masks import MaskReading, Paste, choose_region, clean, decode_mask, drawn_box, whole_blocks
from app.images.memory import waiting_array
from app.images.scaling import covering_box, scale
from app.images.sizes import Size, preferred_size
from app.modes.fields import WHOLE, Steps, Strength, Uploads, params_of
from app.modes.img2img import PictureParams, PictureRequest
from app.pipelines.base import Mode
from app.settings import MAX_SIDE, Settings

DEFAULT_STEPS, DEFAULT_STRENGTH = 4, 1.0
"""With fewer steps, or less strength, a part that is drawn anew fits its surroundings less."""

DEFAULT_FEATHER, MAX_FEATHER = 16, 128
"""Pixels around the mask over which the drawn part fades into the picture."""

Fill = Literal["original", "noise"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Area:
    """The part of a picture that is drawn, at the size to draw at, and how it is put back.

    `image` (RGB) and `mask` (L, levels 0 and 255) have sides that are multiples of 8. `feather` and `padding` are in
    pixels of the finished picture. Without `padding` the whole picture is drawn.
    """

    image: Image.Image
    mask: Image.Image
    paste: Paste
    feather: int
    padding: int | None

    @classmethod
    def of(
        cls,
        picture: Pixels,
        mask: Image.Image,
        size: Size | None,
        *,
        feather: int,
        padding: int | None,
        max_pixels: int,
    ) -> Self:
        """Choose the area of an RGB picture, of shape (height, width, 3), that a mask of the same size draws.

        `size` is the size to draw at. If it is None, it follows from the area's aspect, and has at most `max_pixels`.

        Raises:
            InvalidImageError: The mask is black, or the picture's aspect is beyond 32:1.
        """
        region = 0, 0, mask.width, mask.height
        if padding is not None:
            aspect = None if size is None else size.width / size.height
            region = choose_region(mask, margin=max(padding, feather), aspect=aspect)
        left, top, right, bottom = region
        drawn_at = size or _size_to_draw_at(Size(right - left, bottom - top), max_pixels)
        return cls(
            image=scale(picture, region, drawn_at),
            mask=whole_blocks(mask.crop(region), drawn_at),
            paste=Paste.of(picture, mask, region, feather=feather),
            feather=feather,
            padding=padding,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InpaintParams(PictureParams):
    """One picture of which an area is drawn anew. With `fill` noise, what the area showed has no influence."""

    mode: ClassVar[Mode] = Mode.INPAINT
    is_composite: ClassVar[bool] = True

    area: Area
    fill: Fill = "original"

    @property
    def start(self) -> Image.Image:
        return self.area.image

    @property
    def mask(self) -> Image.Image:
        return self.area.mask

    @property
    def hides_masked(self) -> bool:
        return self.fill == "noise"

    @property
    def finished_size(self) -> tuple[int, int]:
        height, width, _ = self.area.paste.onto.shape
        return width, height

    def finish(self, pixels: Pixels) -> Pixels:
        return self.area.paste(pixels)

    @property
    def metadata(self) -> Mapping[str, object]:
        facts: dict[str, object] = {"Denoising strength": self.strength, "Mask blur": self.area.feather}
        if self.fill == "noise":
            facts["Masked content"] = "latent noise"
        if self.area.padding is not None:
            facts |= {"Inpaint area": "Only masked", "Masked area padding": self.area.padding}
        return facts

    @classmethod
    def sample(cls, size: tuple[int, int], *, prompt: str, seed: int) -> Self:
        picture = np.asarray(Image.linear_gradient("L").resize(size).convert("RGB"))
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        area = Area.of(picture, mask, Size(*size), feather=DEFAULT_FEATHER, padding=None, max_pixels=0)
        return cls(prompt=prompt, seed=seed, num_inference_steps=2, strength=0.5, area=area)


def _size_to_draw_at(region: Size, max_pixels: int) -> Size:
    try:
        return preferred_size(region, max_pixels=max_pixels)
    except InvalidImageError as error:
        raise InvalidImageError(
            f"The part to draw has {region} pixels, and its aspect is too long. Crop the picture first.", param="image"
        ) from error


Extend = tuple[int, int, int, int]
"""Pixels to add at the top, right, bottom and left."""


def read_area(
    uploads: Uploads,
    size: Size | None,
    settings: Settings,
    *,
    reading: MaskReading = MaskReading.LUMINANCE,
    invert: bool = False,
    extend: Extend = (0, 0, 0, 0),
    feather: int = DEFAULT_FEATHER,
    padding: int | None = None,
) -> Area:
    """Decode the upload `image`, and its mask, which `mask` has, or the picture's transparent parts. Blocks.

    The picture keeps its pixels if there is no size, or if there is padding. Otherwise it is scaled to cover the size
    and cropped about its centre. `extend` adds margins that are drawn. `invert` swaps the mask's black and white.

    Raises:
        TurboError: A file is not a usable picture, or nothing says what to draw.
    """
    picture, opacity = decode_whole(uploads["image"](), settings)
    mask = None
    if "mask" in uploads:
        size_of_mask = Size(picture.shape[1], picture.shape[0])
        mask = decode_mask(uploads["mask"](), size_of_mask, settings, reading=reading)
    elif opacity is not None:
        mask = clean(ImageChops.invert(Image.fromarray(opacity)))
    if mask is not None and invert:
        mask = ImageChops.invert(mask)
    if any(extend):
        picture, mask = _extended(picture, mask, extend, settings)
    if mask is None:
        raise InvalidRequestError(
            "Send a mask whose white parts are drawn anew, or a picture with transparent parts.", param="mask"
        )
    drawn_box(mask)
    if size is not None and padding is None:
        box = covering_box(Size(*mask.size), size)
        picture = np.asarray(scale(picture, box, size))
        mask = clean(mask.resize((size.width, size.height), Image.Resampling.LANCZOS, box))
        if mask.getbbox() is None:
            raise InvalidImageError(
                f"The mask's white parts are not within {size} of the picture: it is cropped about its centre to this "
                "size. Omit the size to keep the whole picture.",
                param="mask",
            )
    return Area.of(picture, mask, size, feather=feather, padding=padding, max_pixels=settings.max_pixels)


def _extended(
    picture: Pixels, mask: Image.Image | None, extend: Extend, settings: Settings
) -> tuple[Pixels, Image.Image]:
    """Return a larger picture and its mask. The margins mirror the picture, to start from, and are drawn."""
    top, right, bottom, left = extend
    height, width, _ = picture.shape
    size = Size(width + left + right, height + top + bottom)
    if size.pixels > settings.max_upload_pixels:
        raise ImageTooLargeError(
            f"The extended picture has {size} pixels, and at most {settings.max_upload_pixels} are allowed.",
            param="extend",
        )
    drawn = Image.new("L", (size.width, size.height), 255)
    drawn.paste(0 if mask is None else mask, (left, top, left + width, top + height))
    mirrored = waiting_array((size.height, size.width, 3))
    mirrored[:] = np.pad(picture, ((top, bottom), (left, right), (0, 0)), mode="symmetric")
    return mirrored, drawn


_SIDE = r"(?:[01]?\d{1,3}|20[0-3]\d|204[0-8])"  # up to MAX_SIDE, so that the schema says so too
_EXTEND = rf"{_SIDE}(?:,{_SIDE},{_SIDE},{_SIDE})?"


def _margins_of(text: str) -> Extend:
    """Return the margins that `extend` asks for: one number for all sides, or four in the order of CSS."""
    sides = [int(number) for number in text.split(",")]
    top, right, bottom, left = sides * 4 if len(sides) == 1 else sides
    return top, right, bottom, left


def _check_extend(text: str) -> str:
    tidy = ",".join(map(str.strip, text.split(",")))
    if not re.fullmatch(_EXTEND, tidy, re.ASCII):
        raise PydanticCustomError(
            "extend_parsing",
            "Send one number of pixels for all sides, or four: top,right,bottom,left, each at most {most}.",
            {"most": MAX_SIDE},
        )
    return tidy


class InpaintRequest(PictureRequest):
    """The fields of an inpainting request beside the picture and the mask."""

    strength: Strength = DEFAULT_STRENGTH
    num_inference_steps: Steps = DEFAULT_STEPS
    padding: Annotated[
        Annotated[int, Field(ge=0, le=MAX_SIDE), WHOLE] | None,
        Field(
            description="Draw only the masked part and this many pixels around it, at full resolution. If omitted, the "
            "whole picture is drawn, at about 512x512."
        ),
    ] = None
    feather: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_FEATHER,
            description="Pixels around the mask over which the drawn part fades into the picture. Beyond them the "
            "picture keeps its pixels.",
        ),
        WHOLE,
    ] = DEFAULT_FEATHER
    fill: Annotated[
        Fill,
        Field(description="What the masked part starts from: what it shows, or noise. With strength 1 always noise."),
    ] = "original"
    extend: Annotated[
        str,
        Field(
            description="Pixels to add to the picture and to draw: one number for all sides, or four, "
            "top,right,bottom,left.",
            examples=["128", "0,256,0,256"],
            json_schema_extra={"pattern": f"^{_EXTEND}$"},
        ),
        AfterValidator(_check_extend),
    ] = "0"

    def to_params(self, uploads: Uploads, settings: Settings) -> list[InpaintParams]:
        """Return one params object per picture. `uploads` has the picture, and the mask if there is one. Blocks.

        Raises:
            TurboError: As `read_area`.
        """
        area = read_area(
            uploads,
            self.chosen_size,
            settings,
            extend=_margins_of(self.extend),
            feather=self.feather,
            padding=self.padding,
        )
        return params_of(
            self,
            InpaintParams,
            num_inference_steps=self.num_inference_steps,
            strength=self.strength,
            area=area,
            fill=self.fill,
        )
