"""Error texts of torch_npu and CANN, and their meaning for the service."""

import os
import re
from dataclasses import dataclass

from app.errors import DeviceLostError, OperatorRefusedError, TurboError

NPU_ALLOCATOR = "NPU out of memory"
"""How the text of torch_npu's allocators begins. The task queue raises the same class with other texts; it is fatal."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of error: a regular expression that recognises its text, its meaning, and what an operator can do."""

    sign: str
    meaning: str
    remedy: str = "Read CANN's log (~/ascend/log); report the error if it happens again."


NPU_FAULTS = (
    Fault(r"\b507010\b", "the device's scheduler does not answer", "Reset the device (npu-smi set -t reset)."),
    Fault(
        r"\b(507014|507034)\b",
        "an AI Core or vector core timed out",
        "Look for other processes on the device (npu-smi info); read CANN's log.",
    ),
    Fault(
        r"\b(507015|507016|507035|507036|50704[2-5]|507050)\b|error exception|The error from device|EZ2001",
        "an AI Core or vector core raised an exception",
        "Find the operator in CANN's log; check that torch_npu, CANN and driver match (`doctor`).",
    ),
    Fault(r"\b(507017|507018|507900|E39999)\b", "an AI CPU operator failed"),
    Fault(
        r"\b(507011|50704[6-9]|107020|EE1002)\b",
        "the device did not finish its work",
        "Look for other processes on the device (npu-smi info); read CANN's log.",
    ),
    Fault(
        r"\b(507033|207004|EL0001)\b",
        "the device cannot be started or is gone",
        "Check npu-smi info and the driver; reset the device.",
    ),
    Fault(
        r"\b507053\b|UCE ERROR|device mem error",
        "the device's memory has an error that cannot be corrected",
        "Check `npu-smi info -t ecc`; reset the device; replace it if the error happens again.",
    ),
    Fault(
        r"\b507054\b|HBM MULTI BIT ECC ERROR|[Mm]ulti-bit ECC",
        "the device's memory has an ECC error of several bits",
        "Check `npu-smi info -t ecc`; replace the device.",
    ),
    Fault(
        r"\b(507055|507057)\b|SUSPECT (MEM|REMOTE) ERROR|suspect (device mem|remote) error",
        "the memory of another device may be faulty",
        "Check the health of all devices of the machine (npu-smi info).",
    ),
    Fault(r"\b507056\b|(HCCS|UB) LINK ERROR", "the link between devices failed", "Check npu-smi info and the links."),
    Fault(r"\b(107022|107023)\b|FORCE STOP|device task abort", "the device's work was aborted from outside"),
    Fault(
        r"\b(207001|207018|245000|245002|EL0004)\b|Failed to allocate",
        "an allocation outside of torch's allocator failed, and work was dropped",
        "Free memory of the device, or set TURBO_MAX_PIXELS lower; TASK_QUEUE_ENABLE=1 makes this rarer.",
    ),
    Fault(
        r"\b(207000|207019)\b|driver and firmware packages do not match",
        "driver, firmware and CANN do not match",
        "Install a driver that CANN's release notes name.",
    ),
    Fault(
        r"\b(207006|EL0007)\b",
        "this user may not use the device",
        "Run as a member of the group that owns /dev/davinci* (HwHiAiUser).",
    ),
    Fault(r"\b(20700[5789]|207010|EL0006|EL0008|EL0009|EL0010)\b", "the device has no streams, events or models left"),
    Fault(
        r"\b(107001|EL0002|EE1001)\b|Invalid device ID",
        "the device number does not exist, or an argument is invalid",
        "Check TURBO_DEVICE, ASCEND_RT_VISIBLE_DEVICES and the container's /dev/davinci*.",
    ),
    Fault(r"\b107002\b", "a thread used the device before setting it"),
    Fault(r"\b(100039|148049)\b", "CANN's environment is not set", "Source CANN's set_env.sh, then start the service."),
    Fault(r"\b(507899|507901|EL9999)\b", "the driver failed", "Check dmesg and npu-smi info; reset the device."),
    Fault(r"\b361001\b", "an operator could not be launched"),
    Fault(
        r"Aclrt\w*Synchronize|(code is|result =) ?(107|207|507)\d{3}\b|\b(EE|EH|EL|EI)\d{4}\b|\bE3\d{4}\b",
        "CANN's runtime reports an error of the device",
    ),
    Fault(r"The Inner error is reported as above", "an earlier operation failed on the device"),
)
"""Errors that the device reports asynchronously. The more specific come first: one text can match several.

The numbers are CANN's aclError codes, the letters with four digits its components' (the first letter is E, the second
names the module), the capitals torch_npu's own (torch_npu/csrc/core/npu/NPUException.h and NPUErrorCodes.h of
Ascend/pytorch). All of them are fatal: afterwards torch_npu raises the same error again, or silently drops its work.

EZ9999 is not in the table: CANN also writes it for tiling on the host (nnopbase/composite_op/log of hicann/opbase).
"""

_PROCESS_ID = re.compile(r"PID: ?\d+")
"""Most texts contain one, and it may look like a code."""

_UNKNOWN = Fault("", "an error that is not in the table")

_CALL = r"(NPU function error: call (aclnn\w+ )?failed|OPS function error: aclnn\w+), error code is "
"""How torch_npu reports that an operator of CANN's aclnn library failed on the calling thread (EXEC_NPU_CMD in
op_plugin/utils/op_api_common.h of Ascend/op-plugin; NPU_CHECK_ERROR in NPUException.h). If the operator failed in the
task queue, the text is "The Inner error", which is in the table above."""

NPU_REFUSALS = (
    Fault(
        rf"{_CALL}16100[12]\b|\bERR0[01]00[1237]\b",
        "an operator does not take these arguments",
        "Report the size; other sizes may work.",
    ),
    Fault(
        rf"{_CALL}56100[12]\b",
        "an operator cannot tile its work for this size",
        "Report the size; other sizes may work. A later CANN may support it.",
    ),
    Fault(
        rf"{_CALL}561\d{{3}}\b",
        "an operator has no kernel for this, or the installation of CANN's kernels is incomplete",
        "Check that the kernels of this chip are installed (`doctor`), then report the size.",
    ),
)
"""Errors of an operator's checks on the host, before anything is queued: parameters, shape inference and tiling.

The numbers are aclnn's return codes (include/nnopbase/opdev/op_errno.h of hicann/opbase): 161001 and 161002 for
parameters, 561001 and 561002 for shapes and tiling, the other 561xxx for kernels that are not found. ERRxxxxx are
torch_npu's own (NPUException.h): module 00 or 01, then 001, 002, 003 for parameter, type and value, 007 for
unsupported. With TASK_QUEUE_ENABLE=2 these checks run in the task queue, and a refusal ends it (docs/ascend.md).
"""

_OF_THE_NPU = re.compile(
    r"\bERR\d{5}\b|\bE[A-Z0-9]\d{4}\b|[Ii]nner error|error code|\b[Aa](CL|cl)|CANN|NPU|"
    r"[A-Z]{3,} (ERROR|STOP)|ECC|device mem|device task abort|suspect|Failed to allocate|firmware"
)
"""Every error text of torch_npu or CANN matches this; the texts of torch's own checks do not."""


def explain(error: BaseException) -> Fault:
    """Return the row of the table for an NPU's error."""
    text = _PROCESS_ID.sub("", str(error))
    return next((fault for fault in NPU_FAULTS if re.search(fault.sign, text)), _UNKNOWN)


def npu_error(error: Exception) -> TurboError | None:
    """Translate an error of a call to an NPU; None if it is not the NPU's."""
    text, fault = str(error), explain(error)
    # A compact text of torch_npu is so short that a refusal cannot be told from a fault.
    if os.environ.get("TORCH_NPU_COMPACT_ERROR_OUTPUT") != "1":
        if not _OF_THE_NPU.search(text):
            return None
        refusal = next((refusal for refusal in NPU_REFUSALS if re.search(refusal.sign, text)), None)
        if fault is _UNKNOWN and refusal is not None:
            name = re.search(r"\baclnn\w+", text)
            operator = f" ({name[0]})" if name else ""
            return OperatorRefusedError(f"The device is well, but {refusal.meaning}{operator}. {refusal.remedy}")
    return DeviceLostError(f"The device failed ({fault.meaning}); the service is being replaced.", remedy=fault.remedy)
