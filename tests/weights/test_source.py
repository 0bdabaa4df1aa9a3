from pathlib import Path

import pytest

from app.errors import WeightsError
from app.weights.source import DemoSource, FakeSource, FolderSource, HubSource, WeightsSource, parse_source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo", DemoSource()),
        ("fake", FakeSource()),
        ("fake:0.25", FakeSource(0.25)),
        ("openmind:PyTorch-NPU/sdxl-turbo", HubSource("openmind", "PyTorch-NPU/sdxl-turbo", "main")),
        ("openmind:PyTorch-NPU/sdxl-turbo@v1.0", HubSource("openmind", "PyTorch-NPU/sdxl-turbo", "v1.0")),
        ("hf:stabilityai/sdxl-turbo@refs/pr/3", HubSource("hf", "stabilityai/sdxl-turbo", "refs/pr/3")),
        ("/srv/models/turbo", FolderSource(Path("/srv/models/turbo"))),
        ("./demo", FolderSource(Path("demo"))),
        ("fakes", FolderSource(Path("fakes"))),
    ],
)
def test_each_form_of_name_is_understood(text: str, expected: WeightsSource | FakeSource) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    "text", ["hf:", "hf:sdxl-turbo", "openmind:a/b/c", "openmind:a/b@", "hf:a/b@../c@d", "hf:a b/c", "hf:../.."]
)
def test_a_hub_s_name_that_is_none_is_a_clear_error(text: str) -> None:
    with pytest.raises(WeightsError, match=r"is not HUB:OWNER/NAME\[@REVISION\]"):
        parse_source(text)


def test_the_home_of_nobody_is_a_clear_error() -> None:
    with pytest.raises(WeightsError, match="TURBO_MODEL=~nobody-at-all/x"):
        parse_source("~nobody-at-all/x")


def test_a_folder_goes_by_its_own_name_and_not_by_its_path() -> None:
    assert FolderSource(Path("/srv/secret/turbo")).name == "turbo"
