"""Ascend NPUs: torch_npu's options, and a correction of diffusers. The only module that imports torch_npu."""

import importlib
import importlib.util
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU

from app.errors import DeviceUnavailableError
from app.pipelines.device_errors import device_errors
from app.pipelines.networks.operators import geglu
from app.settings import Settings


def is_installed() -> bool:
    """Tell whether torch_npu is installed. Its import may still fail."""
    return importlib.util.find_spec("torch_npu") is not None


def torch_npu() -> Any:
    """Import torch_npu and return it. The import registers torch's device type `npu`.

    Raises:
        DeviceUnavailableError: The import fails.
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
    return int(npu.device_count()) if npu.is_available() else 0


def open_npu(index: int, *, allow_hf32: bool) -> torch.device:
    """Set up the visible NPU with this index and make it current on the calling thread, which starts with device 0.

    Raises:
        DeviceLostError: The NPU fails.
        DeviceUnavailableError: torch_npu cannot be loaded.
    """
    npu = torch_npu().npu
    device = torch.device("npu", index)
    with device_errors(device):
        # By default 310P and 910 compile kernels for every new shape (later chips do not): each new size would wait.
        # https://www.hiascend.com/document/detail/zh/Pytorch/700/apiref/apilist/ptaoplist_000610.html
        npu.set_compile_mode(jit_compile=False)
        # By default they use private tensor layouts, and convert back and forth around most operators.
        # `_npuConfig` in torch_npu/npu/npu_config.py of Ascend/pytorch
        npu.config.allow_internal_format = False
        # By default convolutions of fp32 are computed in HF32, and products are not (the same file).
        npu.conv.allow_hf32 = npu.matmul.allow_hf32 = allow_hf32
        npu.set_device(device)
    return device


def chip(device: torch.device) -> str:
    """Return the name of the chip, such as `Ascend910B4`."""
    return str(torch_npu().npu.get_device_name(device))


def check_options(settings: Settings, device: torch.device) -> None:
    """Check that the NPU's own options fit the device.

    Raises:
        DeviceUnavailableError: They do not fit; the text says why.
    """
    fused = settings.fused_operators
    names = {"TURBO_NPU_GRAPHS": settings.npu_graphs, f"TURBO_FUSED_OPERATORS={fused}": fused not in ("auto", "off")}
    for option, is_set in names.items():
        if is_set and device.type != "npu":
            raise DeviceUnavailableError(f"{option} needs an NPU, and the device is {device}.")


def fit(unet: UNet2DConditionModel) -> None:
    """Adapt the UNet to torch_npu if torch_npu is installed: diffusers checks no more, whatever the UNet's device."""
    if not is_installed():
        return
    for module in unet.modules():
        if type(module) is GEGLU:
            module.__class__ = _ErfGeglu


class _ErfGeglu(GEGLU):  # type: ignore[misc] # diffusers publishes no types
    """GEGLU as the model was trained with it, from torch's operations.

    If torch_npu is installed, diffusers 0.42 calls `npu_geglu(approximate=1)`, GELU's approximation by tanh, also for
    CPU tensors, which that operator does not take. The model has the exact GELU.
    """

    def forward(self, hidden_states: torch.Tensor) -> Any:
        return geglu(self.proj(hidden_states))
