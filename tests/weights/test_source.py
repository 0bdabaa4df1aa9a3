from pathlib import Path

import pytest

from app.errors import WeightsError
from app.weights.source import DemoSource, FakeSource, HubSource, LocalSource, WeightsSource, parse_source, parse_vae


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo", DemoSource()),
        ("fake", FakeSource()),
        ("fake:0.25", FakeSource(0.25)),
        ("openmind:PyTorch-NPU/sdxl-turbo", HubSource("openmind", "PyTorch-NPU/sdxl-turbo", "main")),
        ("openmind:PyTorch-NPU/sdxl-turbo@v1.0", HubSource("openmind", "PyTorch-NPU/sdxl-turbo", "v1.0")),
        ("hf:stabilityai/sdxl-turbo@refs/pr/3", HubSource("hf", "stabilityai/sdxl-turbo", "refs/pr/3")),
        ("/srv/models/turbo", LocalSource(Path("/srv/models/turbo"))),
        ("./demo", LocalSource(Path("demo"))),
        (
            "hf:stabilityai/sdxl-turbo:sd_xl_turbo_1.0_fp16.safetensors",
            HubSource("hf", "stabilityai/sdxl-turbo", "main", "sd_xl_turbo_1.0_fp16.safetensors"),
        ),
        ("openmind:a/b:deep/er/c.safetensors@v1", HubSource("openmind", "a/b", "v1", "deep/er/c.safetensors")),
        ("/srv/turbo.safetensors", LocalSource(Path("/srv/turbo.safetensors"))),
        ("fakes", LocalSource(Path("fakes"))),
    ],
)
def test_each_form_of_name_is_understood(text: str, expected: WeightsSource | FakeSource) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:sdxl-turbo",
        "openmind:a/b/c",
        "openmind:a/b@",
        "hf:a/b@../c@d",
        "hf:a b/c",
        "hf:../..",
        "hf:a/b:c.ckpt",
        "hf:a/b:../c.safetensors",
        "hf:a/b:.safetensors",
    ],
)
def test_a_hub_s_name_that_is_none_is_a_clear_error(text: str) -> None:
    with pytest.raises(WeightsError, match=r"is not HUB:OWNER/NAME\[:FILE\.safetensors\]\[@REVISION\]"):
        parse_source(text)


def test_the_home_of_nobody_is_a_clear_error() -> None:
    with pytest.raises(WeightsError, match="TURBO_MODEL=~nobody-at-all/x"):
        parse_source("~nobody-at-all/x")


@pytest.mark.parametrize(
    "source",
    [
        LocalSource(Path("/srv/secret/turbo")),
        LocalSource(Path("/srv/secret/turbo.safetensors")),
        HubSource("hf", "secret/secret", file="secret/turbo.safetensors"),
    ],
)
def test_a_folder_or_file_goes_by_its_own_name_and_not_by_its_path(source: WeightsSource) -> None:
    assert source.name == "turbo"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("hf:madebyollin/taesdxl@b581b40", HubSource("hf", "madebyollin/taesdxl", "b581b40")),
        ("openmind:a/vae", HubSource("openmind", "a/vae")),
        ("/srv/vae", LocalSource(Path("/srv/vae"))),
        ("demo", LocalSource(Path("demo"))),
    ],
)
def test_a_vae_is_on_a_hub_or_in_a_folder(text: str, expected: HubSource | LocalSource | None) -> None:
    assert parse_vae(text) == expected


@pytest.mark.parametrize("text", ["hf:taesdxl", "~nobody-at-all/x", "hf:a/b:vae.safetensors", "/srv/vae.safetensors"])
def test_a_wrong_name_of_a_vae_is_a_clear_error(text: str) -> None:
    with pytest.raises(WeightsError, match=f"^TURBO_VAE={text}"):
        parse_vae(text)
