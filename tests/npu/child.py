"""A server process imports this module first. It simulates the NPU, and makes it fail at SIGUSR1.

The variable NPU_FAULT names the fault: error, dying, dead or hang.
"""

import os
import signal
import threading

from tests.npu.simulator import install

_npu = install()


def _fail(*_: object) -> None:
    match os.environ["NPU_FAULT"]:
        case "error":
            _npu.error = RuntimeError("NPU function error: AclSynchronizeStream, error code is 507015")
        case "hang":
            _npu.hang = threading.Event()
        case "dying":
            _npu.queue = "dying"
        case _:
            _npu.queue = "dead"


signal.signal(signal.SIGUSR1, _fail)
