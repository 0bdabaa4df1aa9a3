"""Shared by the tests on the full-size model: its folder, and two lives of the service on it.

A start takes about a minute and a picture seconds, so the tests share what was made. FULL_SIZE_MODEL names another
folder with a model of the same layout, to try the tests themselves on a small one.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.pipelines.checkpoint import count_parameters
from app.pipelines.device import choose_dtype
from benchmarks.full_size import FOLDER
from tests.full_size.life import Life

LARGEST = "1024 px, 4 steps"


@pytest.fixture(scope="session")
def model() -> Path:
    """The folder of the full-size model."""
    folder = Path(os.environ.get("FULL_SIZE_MODEL") or FOLDER).resolve()
    assert folder.is_dir(), f"{folder} is missing: run `make full-size`"
    return folder


@pytest.fixture(scope="session")
def weights_bytes(model: Path) -> int:
    """The size of the weights in the default format of this machine's CPU."""
    dtype, _ = choose_dtype("auto", torch.device("cpu"), parameters=count_parameters(model / "unet"))
    return dtype.itemsize * sum(count_parameters(path.parent) for path in model.glob("*/config.json"))


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for gigabytes, which are removed at the end: pytest keeps the folders of its last runs."""
    folder = tmp_path_factory.mktemp("disk")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def first_life(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """The service with its defaults, except that a slow machine has time for the largest picture."""
    life = Life(tmp_path_factory.mktemp("first"), model=model, deadline_s=1200, drain_s=2)
    yield life
    life.end()


@pytest.fixture(scope="session")
def second_life(model: Path, first_life: Life, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """The service started again, with a deadline that it cannot keep for the largest picture."""
    deadline_s = max(first_life.make(LARGEST).seconds / 2, 3 * first_life.make("512 px").seconds)
    first_life.end()
    life = Life(tmp_path_factory.mktemp("second"), model=model, deadline_s=deadline_s)
    yield life
    life.end()
