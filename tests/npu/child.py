"""A server process imports this module first. It simulates the NPU, and makes it fail at SIGUSR1.

The variable NPU_FAULT names the fault: error, dying, dead or hang. NPU_SETTINGS is a JSON object with attributes of the
simulated hardware, such as its costs and operators that deviate.
"""

import json
import os
import signal
import threading

from tests.npu.simulator import install

_npu = install()
for _name, _value in json.loads(os.environ.get("NPU_SETTINGS", "{}")).items():
    setattr(_npu, _name, _value)


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
