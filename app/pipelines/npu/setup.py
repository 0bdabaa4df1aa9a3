"""Ascend NPUs: what torch_npu is told, and where diffusers is put right. The one place that imports torch_npu."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU

from app.errors import DeviceUnavailableError
from app.pipelines.device_errors import device_errors

Attention = Literal["sdpa", "npu_flash"]


def is_installed() -> bool:
    """Tell whether torch_npu can be found; that it can be loaded is another matter."""
    return importlib.util.find_spec("torch_npu") is not None


def torch_npu() -> Any:
    """Import torch_npu and return it. That also makes torch know the word `npu`.

    Raises:
        DeviceUnavailableError: It cannot be loaded.
    """
    try:
        return importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceUnavailableError(
            f"torch_npu cannot be loaded ({error}). Install the torch_npu that matches torch {torch.__version__}, "
            "source CANN's set_env.sh, or set TURBO_DEVICE=cpu."
        ) from error


def visible_devices() -> int:
    """Count the NPUs that this process may use.

    Raises:
        DeviceUnavailableError: torch_npu cannot be loaded.
    """
    npu = torch_npu().npu
    count: int = npu.device_count() if npu.is_available() else 0
    return count


def open_npu(index: int, *, allow_hf32: bool) -> torch.device:
    """Set the NPU up and make it current on the calling thread; the current device is per thread and starts at 0.

    Args:
        index: Its number among the visible ones.
        allow_hf32: Whether fp32 may be rounded to HF32 in products and convolutions.

    Raises:
        DeviceLostError: It fails.
        DeviceUnavailableError: torch_npu cannot be loaded.
    """
    npu = torch_npu().npu
    device = torch.device("npu", index)
    with device_errors(device):
        # Compiled kernels for every new shape are the default of 310P and 910 (off on later ones), and would make each
        # new size wait. https://www.hiascend.com/document/detail/zh/Pytorch/700/apiref/apilist/ptaoplist_000610.html
        npu.set_compile_mode(jit_compile=False)
        # Likewise their private tensor layouts, which are converted back and forth around most operators.
        # `_npuConfig` in torch_npu/npu/npu_config.py of Ascend/pytorch
        npu.config.allow_internal_format = False
        # By default convolutions of fp32 are computed in HF32, and products are not (the same file).
        npu.conv.allow_hf32 = npu.matmul.allow_hf32 = allow_hf32
        npu.set_device(device)
    return device


def check_options(device: torch.device, dtype: torch.dtype, *, attention: Attention, graphs: bool) -> None:
    """Check that the NPU's own options fit the device and the UNet's dtype.

    Raises:
        DeviceUnavailableError: They do not; the text says why.
    """
    if device.type != "npu":
        if attention == "npu_flash":
            raise DeviceUnavailableError(f"TURBO_ATTENTION=npu_flash needs an NPU, and the device is {device}.")
        if graphs:
            raise DeviceUnavailableError(f"TURBO_NPU_GRAPHS needs an NPU, and the device is {device}.")
    if attention == "npu_flash" and dtype == torch.float32:
        # npu_fusion_attention takes fp16 and bf16; diffusers would quietly use SDPA.
        raise DeviceUnavailableError("TURBO_ATTENTION=npu_flash works in fp16 and bf16, not with TURBO_DTYPE=fp32.")


def fit(unet: UNet2DConditionModel, *, attention: Attention) -> None:
    """Fit the UNet to torch_npu if that is installed, whatever device the UNet is on: diffusers asks no more either."""
    if not is_installed():
        return
    for module in unet.modules():
        if type(module) is GEGLU:
            module.__class__ = _ErfGeglu
    if attention == "npu_flash":
        # SDPA already becomes npu_fusion_attention on 910B and later (torch_npu's op-plugin), so this is no default.
        # `set_attention_backend("_native_npu")` does nothing here: SDXL's UNet has processors of the older kind.
        unet.enable_npu_flash_attention()


def graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of tensors into NPU graphs, for each size of its own.

    As docs/zh/npugraph_ex/quick_start.md of Ascend/torchair says; for inference on A2 and A3. Without clone_output what
    a call returns is overwritten by the next one. torch.compile's default backend is no choice: it made a job 6.5 times
    slower on a 910B (sgl-project/sglang#20687).
    """
    compiled: Callable[..., Any] = torch.compile(
        function, backend="npugraph_ex", fullgraph=True, dynamic=False, options={"clone_output": True}
    )
    return compiled


class _ErfGeglu(GEGLU):  # type: ignore[misc] # diffusers publishes no types
    """GEGLU as the model was trained with it.

    diffusers 0.42 calls `npu_geglu(approximate=1)` wherever torch_npu is installed. That is GELU's approximation by
    tanh, where the model has the exact one (approximate=0; op-plugin's documentation of npu_geglu), and it has no
    kernel for the CPU.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        projected = self.proj(hidden_states)
        if projected.device.type == "npu":
            # torch_npu.npu_geglu by the name that torch.compile can follow
            fused: torch.Tensor = torch.ops.npu.npu_geglu(projected, dim=-1, approximate=0)[0]
            return fused
        left, gate = projected.chunk(2, dim=-1)
        exact: torch.Tensor = left * torch.nn.functional.gelu(gate)
        return exact
