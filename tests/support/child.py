"""Imported first in a server of its own process: a gated fake in place of the fake, which fails when it is told to.

SIGUSR1 has it fail in the way that the variable FAULT names, lost or hang; SIGUSR2 closes the gate, or opens it again.
"""

import os
import signal

from app import main
from app.errors import DeviceLostError
from tests.support.gated_pipeline import GatedPipeline

_pipeline = GatedPipeline(max_batch=4)  # a hung call is found after the limit times its pictures
main.load_fake = lambda **_: _pipeline.load()  # type: ignore[attr-defined] # it is there to be called alone


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
