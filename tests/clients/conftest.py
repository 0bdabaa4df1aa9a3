"""The service that the programs call, and the picture that they send."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.clients.own_routes import Service
from tests.conftest import ServerProcess


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the fake model that needs a key."""
    folder, key = tmp_path_factory.mktemp("service"), secrets.token_hex()
    keys = folder / "keys"
    keys.write_text(f"tester: {key}\n")
    process = ServerProcess(folder / "log", model="fake", port=0, api_keys_file=keys)
    try:
        yield Service(url=process.wait_until_started(), key=key)
    finally:
        process.kill()


@pytest.fixture(scope="session")
def with_wrong_key(service: Service) -> Service:
    """The same service, with a key that it does not know."""
    return Service(url=service.url, key=secrets.token_hex())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of 320x192 pixels, which the service edits at 664x400. No two of its quarters are alike."""
    path = tmp_path / "picture.png"
    ramp = Image.linear_gradient("L").resize((320, 192))
    Image.merge("RGB", (ramp, ramp.rotate(90).resize(ramp.size), ramp.rotate(180))).save(path)
    return path
