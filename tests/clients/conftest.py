"""The service that the programs call, and the picture and the masks that they send."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests.clients.own_routes import Service, masks_of
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
    """A picture of 320x192 pixels, which the service edits at 664x400. No two of its quarters are alike.

    Beside it are its masks, which draw the same part: right of the middle, and near the lower edge.
    """
    path = tmp_path / "picture.png"
    ramp = Image.linear_gradient("L").resize((320, 192))
    image = Image.merge("RGB", (ramp, ramp.rotate(90).resize(ramp.size), ramp.rotate(180)))
    image.save(path)
    mask = Image.new("L", image.size)
    mask.paste(255, (176, 96, 272, 184))
    masks = masks_of(path)
    mask.save(masks.white_is_drawn)
    ImageChops.invert(mask).save(masks.black_is_drawn)
    clear = image.copy()
    clear.putalpha(ImageChops.invert(mask))
    clear.save(masks.clear_is_drawn)
    return path
