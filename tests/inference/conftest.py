"""A clock for the tests of the inference core."""

import pytest

from tests.support.clock import Clock


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of this test's engine, from its warm-up on."""
    clock = Clock()
    clock.install(monkeypatch)
    return clock
