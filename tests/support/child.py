"""A server process imports this module first. It replaces the fake with a gated pipeline that fails on a signal.

At SIGUSR1 the device fails as the variable FAULT says: lost or hang. SIGUSR2 closes the gate, or opens it again.
"""

import os
import signal

from app import main
from app.errors import DeviceLostError
from tests.support.gated_pipeline import GatedPipeline

_pipeline = GatedPipeline(max_batch=4)  # the hang limit grows with the pictures of a call
main.load_fake = lambda **_: _pipeline.load()  # type: ignore[attr-defined] # the import is not part of its interface


def _fail(*_: object) -> None:
    if os.environ["FAULT"] == "hang":
        _pipeline.gate.clear()
    else:
        _pipeline.device.error = DeviceLostError("The device fell off the bus.")


def _turn(*_: object) -> None:
    if _pipeline.gate.is_set():
        _pipeline.gate.clear()
    else:
        _pipeline.gate.set()


signal.signal(signal.SIGUSR1, _fail)
signal.signal(signal.SIGUSR2, _turn)
