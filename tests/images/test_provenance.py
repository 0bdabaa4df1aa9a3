import dataclasses
import io
import json
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import numpy.typing as npt
import piexif
import piexif.helper
import pytest
from PIL import ExifTags, Image

from app.images.encoding import MediaType, encode_image
from app.images.provenance import Provenance, parameters_text, provenance_of
from app.modes.img2img import Img2ImgParams
from app.modes.txt2img import Txt2ImgParams
from app.settings import Settings
from tests.conftest import opened

Pixels = npt.NDArray[np.uint8]

TXT2IMG = Txt2ImgParams(prompt="a cat", seed=7, num_inference_steps=2, width=64, height=48)
IMG2IMG = Img2ImgParams(prompt="a cat", seed=7, num_inference_steps=2, strength=0.5, image=Image.new("RGB", (64, 48)))

PIXELS: Pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)

AIGC = "{http://www.tc260.org.cn/ns/AIGC/1.0/}AIGC"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def said(
    params: Txt2ImgParams | Img2ImgParams = TXT2IMG, pixels: Pixels = PIXELS, *, model: str = "m", **switches: Any
) -> Provenance:
    chosen: dict[str, Any] = {"image_metadata": True, "ai_label": True, "aigc_producer": "me"} | switches
    return provenance_of(params, pixels, model, Settings(**chosen))


def properties(provenance: Provenance) -> dict[str, str]:
    """What an XML parser finds in the XMP packet."""
    assert provenance.xmp is not None
    (description,) = ET.fromstring(provenance.xmp).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")  # noqa: S314 - our own
    return {element.tag: element.text or "" for element in description}


def aigc(provenance: Provenance) -> dict[str, str]:
    label: dict[str, str] = json.loads(properties(provenance)[AIGC])
    return label


def test_parameters_are_written_as_stable_diffusion_webui_does() -> None:
    assert parameters_text(TXT2IMG, model="m") == (
        "a cat\nSteps: 2, Sampler: Euler a, CFG scale: 0, Seed: 7, Size: 64x48, Model: m"
    )
    assert parameters_text(IMG2IMG, model="m").endswith(", Model: m, Denoising strength: 0.5")
    assert parameters_text(IMG2IMG, model="m", vae="v").endswith(", Model: m, VAE: v, Denoising strength: 0.5")


def test_the_label_of_gb_45438_has_seven_strings() -> None:
    label = aigc(said())
    assert list(label.items()) == [
        ("Label", "1"),
        ("ContentProducer", "me"),
        ("ProduceID", label["ProduceID"]),
        ("ReservedCode1", ""),
        ("ContentPropagator", "me"),
        ("PropagateID", label["ProduceID"]),
        ("ReservedCode2", ""),
    ]


def test_a_producer_may_have_any_character_that_the_standard_allows() -> None:
    producer = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("\\", "")
    assert aigc(said(aigc_producer=producer))["ContentProducer"] == producer


@pytest.mark.parametrize("params", [TXT2IMG, IMG2IMG], ids=["txt2img", "img2img"])
def test_both_modes_are_labelled_as_made_by_a_trained_algorithm(params: Txt2ImgParams | Img2ImgParams) -> None:
    found = properties(said(params))[SOURCE_TYPE]
    assert found == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_what_is_switched_off_is_absent() -> None:
    assert said(image_metadata=False).parameters is None
    assert set(properties(said(ai_label=False))) == {AIGC}
    assert set(properties(said(aigc_producer=""))) == {SOURCE_TYPE}
    assert said(image_metadata=False, ai_label=False, aigc_producer="") == Provenance()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a cat "},
        {"seed": 8},
        {"num_inference_steps": 3},
        {"strength": 0.6},
        {"image": Image.new("RGB", (48, 64))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_number_of_a_picture_changes_with_each_parameter(change: dict[str, Any]) -> None:
    assert aigc(said(dataclasses.replace(IMG2IMG, **change)))["ProduceID"] != aigc(said(IMG2IMG))["ProduceID"]


def test_the_number_of_a_picture_changes_with_the_model_and_every_pixel() -> None:
    one_level_off = PIXELS.copy()
    one_level_off[-1, -1, -1] ^= 1
    shape = (PIXELS.shape[1], PIXELS.shape[0], 3)
    numbers = [
        aigc(one)["ProduceID"]
        for one in (
            said(),
            said(model="n"),
            said(pixels=one_level_off),
            said(pixels=PIXELS.reshape(shape), image_metadata=False),
            said(image_metadata=False),
        )
    ]
    assert len(set(numbers)) == len(numbers)


def test_the_number_of_a_picture_changes_with_nothing_else() -> None:
    strided = np.flip(np.flip(PIXELS, 0).copy(), 0)
    others = (said(pixels=strided), said(ai_label=False), said(aigc_producer="you"))
    assert {aigc(other)["ProduceID"] for other in others} == {aigc(said())["ProduceID"]}


def test_no_number_is_made_of_parameters_that_are_not_told() -> None:
    first, other = (said(dataclasses.replace(TXT2IMG, prompt=prompt), image_metadata=False) for prompt in "ab")
    assert first == other


@pytest.mark.parametrize("media_type", MediaType)
def test_labels_change_no_pixel(media_type: MediaType) -> None:
    labelled, plain = (encode_image(PIXELS, media_type, provenance=one) for one in (said(), Provenance()))
    assert labelled != plain
    assert np.array_equal(np.asarray(opened(labelled)), np.asarray(opened(plain)))


@pytest.mark.parametrize("media_type", MediaType)
@pytest.mark.parametrize("switches", [{"image_metadata": False}, {"ai_label": False, "aigc_producer": ""}, {}])
def test_the_same_picture_gives_the_same_bytes(media_type: MediaType, switches: dict[str, Any]) -> None:
    first, second = (encode_image(PIXELS, media_type, provenance=said(**switches)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("media_type", MediaType)
def test_pillow_finds_the_packet(media_type: MediaType) -> None:
    info = opened(encode_image(PIXELS, media_type, provenance=said())).info
    packet = info["xmp"] if "xmp" in info else info["XML:com.adobe.xmp"].encode()
    assert packet == said().xmp


def test_in_a_png_all_is_said_before_the_pixels() -> None:
    data = encode_image(PIXELS, MediaType.PNG, provenance=said(dataclasses.replace(TXT2IMG, prompt="一只猫")))
    assert data.count(b"iTXt") == 2
    assert data.rindex(b"iTXt") < data.index(b"IDAT")
    with Image.open(io.BytesIO(data[: data.index(b"IDAT") + 4])) as image:  # nothing behind it has arrived yet
        assert {"parameters", "XML:com.adobe.xmp"} <= set(image.info)


@pytest.mark.parametrize("media_type", [MediaType.WEBP, MediaType.JPEG])
def test_stable_diffusion_webui_s_library_reads_the_parameters_out_of_exif(media_type: MediaType) -> None:
    provenance = said(dataclasses.replace(TXT2IMG, prompt="一只猫 🐈"))
    file = opened(encode_image(PIXELS, media_type, provenance=provenance))
    comment = piexif.load(file.info["exif"])["Exif"][piexif.ExifIFD.UserComment]
    assert piexif.helper.UserComment.load(comment) == provenance.parameters
    assert file.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] == comment
