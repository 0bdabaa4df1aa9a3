"""What torch_npu and CANN report, and what it means for the service."""

import os
import re
from dataclasses import dataclass

from app.errors import DeviceLostError, OperatorRefusedError

_NPU_ALLOCATOR = "NPU out of memory"
"""How the text of torch_npu's allocators begins. The same class from the task queue begins otherwise, and is fatal."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What a device's error says of itself: how it is recognised, what it means, and what an operator does about it."""

    sign: str
    meaning: str
    remedy: str = "Look into CANN's log (~/ascend/log), and report it if it comes again."


NPU_FAULTS = (
    Fault(r"\b507010\b", "the device's scheduler does not answer", "Reset the device (npu-smi set -t reset)."),
    Fault(
        r"\b507014\b|\b507034\b",
        "an AI Core or vector core ran into its timeout",
        "Look for other users of the device (npu-smi info) and into CANN's log.",
    ),
    Fault(
        r"\b50701[56]\b|\b50703[56]\b|\b50704[2-5]\b|\b50705[0]\b|error exception|The error from device|EZ2001",
        "an AI Core or vector core raised an exception",
        "Look into CANN's log for the operator; check that torch_npu, CANN and driver match (python -m app doctor).",
    ),
    Fault(r"\b507017\b|\b507018\b|\b507900\b|\bE39999\b", "an AI CPU operator failed"),
    Fault(
        r"\b507011\b|\b507046\b|\b507047\b|\b50704[89]\b|\b107020\b|\bEE1002\b",
        "the device did not finish its work",
        "Look for other users of the device (npu-smi info) and into CANN's log.",
    ),
    Fault(
        r"\b507033\b|\b207004\b|\bEL0001\b",
        "the device cannot be started or is gone",
        "Check npu-smi info and the driver; reset the device.",
    ),
    Fault(
        r"\b507053\b|UCE ERROR|device mem error",
        "the device's memory has an error that cannot be corrected",
        "Check `npu-smi info -t ecc`; reset the device; have it replaced if it comes again.",
    ),
    Fault(
        r"\b507054\b|HBM MULTI BIT ECC ERROR|[Mm]ulti-bit ECC",
        "the device's memory has an ECC error of several bits",
        "Check `npu-smi info -t ecc`; have the device replaced.",
    ),
    Fault(
        r"\b50705[57]\b|SUSPECT (MEM|REMOTE) ERROR|suspect (device mem|remote) error",
        "the device suspects another device's memory",
        "Check the health of all devices of the machine (npu-smi info).",
    ),
    Fault(
        r"\b507056\b|(HCCS|UB) LINK ERROR", "the link between devices is broken", "Check npu-smi info and the links."
    ),
    Fault(r"\b10702[23]\b|FORCE STOP|device task abort", "the device's work was aborted from outside"),
    Fault(
        r"\b207001\b|\b207018\b|\b24500[02]\b|\bEL0004\b|Failed to allocate",
        "memory could not be had outside of torch's allocator, so that work was dropped",
        "Free memory of the device, or set TURBO_MAX_PIXELS lower; TASK_QUEUE_ENABLE=1 makes this rarer.",
    ),
    Fault(
        r"\b207000\b|\b207019\b|driver and firmware packages do not match",
        "driver, firmware and CANN do not match",
        "Install a driver that CANN's release notes name.",
    ),
    Fault(
        r"\b207006\b|\bEL0007\b",
        "this user may not use the device",
        "Run as a member of the group that owns /dev/davinci* (HwHiAiUser).",
    ),
    Fault(r"\b20700[5789]\b|\b207010\b|\bEL00(06|08|09|10)\b", "the device has no streams, events or models left"),
    Fault(
        r"\b107001\b|\bEL0002\b|\bEE1001\b|Invalid device ID",
        "the device's number is not there, or an argument is not valid",
        "Check TURBO_DEVICE, ASCEND_RT_VISIBLE_DEVICES and the container's /dev/davinci*.",
    ),
    Fault(r"\b107002\b", "a thread used the device before it was set there"),
    Fault(
        r"\b100039\b|\b148049\b",
        "CANN's environment is not set",
        "Source CANN's set_env.sh before the service starts.",
    ),
    Fault(r"\b507899\b|\b507901\b|\bEL9999\b", "the driver failed", "Check dmesg and npu-smi info; reset the device."),
    Fault(r"\b361001\b", "an operator could not be launched"),
    Fault(
        r"Aclrt\w*Synchronize|(code is|result =) ?(107|207|507)\d{3}\b|\b(EE|EH|EL|EI)\d{4}\b|\bE3\d{4}\b",
        "CANN's runtime reports an error of the device",
    ),
    Fault(r"The Inner error is reported as above", "an operation failed on the device some time before"),
)
"""Errors that the device reports asynchronously, the more specific first, as one text can have several signs.

The numbers are CANN's aclError codes, the letters its components' (E, the module, four digits), the capitals
torch_npu's own (torch_npu/csrc/core/npu/NPUException.h and NPUErrorCodes.h of Ascend/pytorch). None of them is
survived: afterwards torch_npu raises the same for ever or, worse, drops what it is given without a word.

EZ9999 is no sign: CANN writes it of tiling on the host, too (nnopbase/composite_op/log of hicann/opbase).
"""

_PROCESS_ID = re.compile(r"PID: ?\d+")
"""Stands in most texts, and may look like a code."""

_UNKNOWN = Fault("", "an error that is not in the table")

_CALL = r"(NPU function error: call (aclnn\w+ )?failed|OPS function error: aclnn\w+), error code is "
"""How torch_npu reports an operator of CANN's aclnn library that failed on the calling thread (EXEC_NPU_CMD in
op_plugin/utils/op_api_common.h of Ascend/op-plugin; NPU_CHECK_ERROR in NPUException.h). Of one that fails in the task
queue it says "The Inner error", which is in the table above."""

NPU_REFUSALS = (
    Fault(
        rf"{_CALL}16100[12]\b|\bERR0[01]00[1237]\b",
        "an operator does not take these arguments",
        "Report the size; a picture of another one can be made.",
    ),
    Fault(
        rf"{_CALL}56100[12]\b",
        "an operator has no way to lay its work out for this size",
        "Report the size; a picture of another one can be made. A later CANN may have it.",
    ),
    Fault(
        rf"{_CALL}561\d{{3}}\b",
        "an operator has no kernel for this, or CANN's kernels are not installed whole",
        "Check that the kernels of this chip are installed (python -m app doctor), then report the size.",
    ),
)
"""Errors of an operator's checks on the host, before anything is queued: parameters, shape inference and tiling.

The numbers are aclnn's return codes (include/nnopbase/opdev/op_errno.h of hicann/opbase): 161001 and 161002 for
parameters, 561001 and 561002 for shapes and tiling, the other 561xxx for kernels that are not found. ERRxxxxx are
torch_npu's own (NPUException.h): module 00 or 01, then 001, 002, 003 for parameter, type and value, 007 for what is not
supported. With TASK_QUEUE_ENABLE=2 these checks run in the task queue, and a refusal ends it (docs/ascend.md).
"""

_OF_THE_NPU = re.compile(
    r"\bERR\d{5}\b|\bE[A-Z0-9]\d{4}\b|[Ii]nner error|error code|\b[Aa](CL|cl)|CANN|NPU|"
    r"[A-Z]{3,} (ERROR|STOP)|ECC|device mem|device task abort|suspect|Failed to allocate|firmware"
)
"""Every error text of torch_npu or CANN matches this; the texts of torch's own checks do not."""


def explain(error: BaseException) -> Fault:
    """Say what an NPU's error means."""
    text = _PROCESS_ID.sub("", str(error))
    return next((fault for fault in NPU_FAULTS if re.search(fault.sign, text)), _UNKNOWN)


def _of_npu(error: Exception) -> DeviceLostError | OperatorRefusedError | None:
    text, fault = str(error), explain(error)
    if not _is_compact() and not _OF_THE_NPU.search(text):
        return None
    if not _is_compact() and fault is _UNKNOWN:
        refusal = next((refusal for refusal in NPU_REFUSALS if re.search(refusal.sign, text)), None)
        if refusal is not None:
            name = re.search(r"\baclnn\w+", text)
            operator = f" ({name[0]})" if name else ""
            return OperatorRefusedError(f"The device is well, but {refusal.meaning}{operator}. {refusal.remedy}")
    return DeviceLostError(f"The device failed ({fault.meaning}); the service is being replaced.", remedy=fault.remedy)


def _is_compact() -> bool:
    """Tell whether torch_npu cuts its texts down so far that a refusal cannot be told from a fault."""
    return os.environ.get("TORCH_NPU_COMPACT_ERROR_OUTPUT") == "1"
