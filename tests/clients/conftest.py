"""The service that the programs call, and the picture that they send."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ServerProcess, png


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service with the fake model."""
    service = ServerProcess(tmp_path_factory.mktemp("service") / "log", model="fake", port=0)
    try:
        yield service.wait_until_started()
    finally:
        service.kill()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of 320x192 pixels, which the service edits at 664x400."""
    path = tmp_path / "picture.png"
    path.write_bytes(png((320, 192), "blue"))
    return path
