"""Marks for tests that need a feature of the processor."""

import pytest
import torch

from app.errors import DeviceUnavailableError
from app.pipelines.device import choose_dtype


def _multiplies_in_int8() -> bool:
    try:
        choose_dtype("int8", torch.device("cpu"), parameters=1)
    except DeviceUnavailableError:
        return False
    return True


needs_int8 = pytest.mark.skipif(not _multiplies_in_int8(), reason="the processor does not multiply in int8")
