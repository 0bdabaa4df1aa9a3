"""What ExifTool, which knows none of our code, reads in the pictures that the service sends."""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from app.images.encoding import MediaType
from app.main import create_app
from app.settings import Settings
from tests.conftest import opened, png, program, running

Tags = dict[str, Any]

CONTAINERS = {"sourcefile", "exiftool", "system", "file", "png", "riff", "jfif", "composite"}
"""Groups that ExifTool finds in any file."""

PRODUCER = "001191110000000000000010001"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

PROMPTS = {
    "english": "a cat, 8k\nin the rain",
    "latin": "café & <b>Ünï</b> \"q\" 'r'",
    "chinese": "一只戴着帽子的猫",
    "emoji": "👩‍🚀🐈 在月球上",
    "long": "🐈" * 2000,
    "long chinese": "".join(chr(0x4E00 + i * 10) for i in range(2000)),
}


async def made(client: httpx.AsyncClient, media_type: str, image: bytes | None = None, **fields: Any) -> bytes:
    """A picture, from a prompt or, if one is given, from a picture."""
    headers, sent = {"Accept": media_type}, {"prompt": "a cat", "seed": 7, "width": 64, "height": 64, **fields}
    if image is None:
        response = await client.post("/txt2img", json=sent, headers=headers)
    else:
        data = {name: str(value) for name, value in sent.items()}
        response = await client.post("/img2img", data=data, files={"image": image}, headers=headers)
    assert response.status_code == 200, response.text
    return response.content


def read_by_exiftool(folder: Path, files: dict[str, bytes]) -> dict[str, Tags]:
    """What is found in each file, by one process, under names in lower case, as it changes theirs.

    With tags that it does not know, and both of those that stand in a file twice.
    """
    for name, data in files.items():
        (folder / name).write_bytes(data)
    command = [program("exiftool"), "-j", "-G1", "-struct", "-a", "-u", *(str(folder / name) for name in files)]
    done = subprocess.run(command, capture_output=True, check=True)
    read = [{name.lower(): value for name, value in tags.items()} for tags in json.loads(done.stdout)]
    assert not [tags for tags in read if "exiftool:warning" in tags or "exiftool:error" in tags]
    return dict(zip(files, read, strict=True))


def parameters(tags: Tags) -> str | None:
    found: str | None = tags.get("png:parameters", tags.get("exififd:usercomment"))
    return found


async def test_every_format_tells_prompt_and_parameters_in_every_script(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    files = {
        f"{name}-{media_type.name}": await made(client, media_type, prompt=prompt)
        for name, prompt in PROMPTS.items()
        for media_type in MediaType
    }
    found = read_by_exiftool(tmp_path, files)
    tail = "Steps: 1, Sampler: Euler a, CFG scale: 0, Seed: 7, Size: 64x64, Model: fake"
    for name, prompt in PROMPTS.items():
        for media_type in MediaType:
            assert parameters(found[f"{name}-{media_type.name}"]) == f"{prompt}\n{tail}", f"{name} in {media_type}"


async def test_every_format_and_both_modes_carry_both_labels_once(tmp_path: Path) -> None:
    files = {}
    async with running(create_app(Settings(model="fake", aigc_producer=PRODUCER))) as client:
        for media_type in MediaType:
            files[f"txt2img-{media_type.name}"] = await made(client, media_type)
            files[f"img2img-{media_type.name}"] = await made(client, media_type, png(), strength=0.75)
    found = read_by_exiftool(tmp_path, files)
    numbers: dict[str, set[str]] = {"txt2img": set(), "img2img": set()}
    for name, tags in found.items():
        mode = name.partition("-")[0]
        assert tags["xmp-iptcext:digitalsourcetype"] == SOURCE_TYPE
        label = json.loads(tags["xmp-tc260:aigc"])
        numbers[mode].add(label.pop("ProduceID"))
        assert label.pop("PropagateID") in numbers[mode]
        assert label == {
            "Label": "1",
            "ContentProducer": PRODUCER,
            "ReservedCode1": "",
            "ContentPropagator": PRODUCER,
            "ReservedCode2": "",
        }
        assert files[name].count(b"ProduceID") == 1  # GB 45438-2025, section 6.1: one such label in a file
        assert ("Denoising strength: 0.75" in (parameters(tags) or "")) == (mode == "img2img")
    assert [len(of_mode) for of_mode in numbers.values()] == [1, 1]  # whatever the format
    assert numbers["txt2img"] != numbers["img2img"]


@pytest.mark.parametrize(
    ("switches", "absent"),
    [
        ({"image_metadata": False}, {"png:parameters", "exififd:usercomment"}),
        ({"ai_label": False}, {"xmp-iptcext:digitalsourcetype"}),
        ({"aigc_producer": ""}, {"xmp-tc260:aigc"}),
    ],
    ids=lambda value: next(iter(value)),
)
async def test_what_is_switched_off_is_absent_and_the_rest_is_there(
    tmp_path: Path, switches: dict[str, Any], absent: set[str]
) -> None:
    async with running(create_app(Settings(**{"model": "fake", "aigc_producer": PRODUCER} | switches))) as client:
        files = {media_type.name: await made(client, media_type, prompt="一只猫") for media_type in MediaType}
    told = {"png:parameters", "exififd:usercomment", "xmp-iptcext:digitalsourcetype", "xmp-tc260:aigc"}
    for name, tags in read_by_exiftool(tmp_path, files).items():
        other_format = "exififd:usercomment" if name == "PNG" else "png:parameters"
        assert told & set(tags) == told - absent - {other_format}
        assert ("一只猫" in json.dumps(tags, ensure_ascii=False)) == ("image_metadata" not in switches)


async def test_with_all_switched_off_no_format_carries_anything(tmp_path: Path) -> None:
    settings = Settings(model="fake", image_metadata=False, ai_label=False)
    async with running(create_app(settings)) as client:
        files = {media_type.name: await made(client, media_type) for media_type in MediaType}
    for tags in read_by_exiftool(tmp_path, files).values():
        assert not [name for name in tags if name.startswith(("XMP", "IFD", "Exif", "png:parameters"))]


@pytest.mark.parametrize("media_type", MediaType)
async def test_the_same_request_gives_the_same_bytes_from_two_services(media_type: str) -> None:
    files = set()
    for _ in range(2):
        async with running(create_app(Settings(model="fake", aigc_producer=PRODUCER))) as client:
            files |= {await made(client, media_type, png()), await made(client, media_type, png())}
    assert len(files) == 1


@pytest.mark.parametrize("media_type", MediaType)
async def test_a_labelled_picture_can_be_uploaded_and_hands_none_of_its_labels_on(media_type: str) -> None:
    async with running(create_app(Settings(model="fake", aigc_producer="THE-FIRST"))) as client:
        labelled = await made(client, media_type, prompt="the first prompt")
    async with running(create_app(Settings(model="fake", image_metadata=False, ai_label=False))) as client:
        plain = await made(client, media_type, prompt="the first prompt")
        again, from_plain = await made(client, media_type, labelled), await made(client, media_type, plain)
    assert again == from_plain
    assert b"THE-FIRST" in labelled
    assert b"THE-FIRST" not in again
    assert opened(again).size == (64, 64)


@pytest.mark.parametrize("producer", ["a b", 'a"b', "a\\b", "某公司", "a\n", "x" * 201])
def test_a_producer_that_the_standard_does_not_allow_is_refused(producer: str) -> None:
    with pytest.raises(ValidationError):
        Settings(aigc_producer=producer)
