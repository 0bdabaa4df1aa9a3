"""A simulated NPU: torch's PrivateUse1 device as `npu`, in pure Python, with stand-ins for `torch.npu` and `torch_npu`.

A tensor on the simulated device is host memory with another device label (a relabelled DLPack capsule, no copy). Every
operation on it runs on the CPU, so pictures in fp32 have the same bytes as on the CPU. The simulator detects mistakes
that a CPU does not: an operation's tensors on different devices, a generator of the wrong device, fp64, names that
torch_npu does not have, and fp32 rounded to HF32. It fails on demand in each way that torch_npu is known to fail.

Call `install` before diffusers is imported. It takes effect once per process.
"""

import ctypes
import importlib.machinery
import importlib.metadata
import os
import sys
import threading
import time
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch._dynamo
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.backend_registration import (
    _DummyDeviceGuard,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

from tests.npu.fused_kernels import KERNELS, Kernel

aten = torch.ops.aten

INNER_ERROR = (
    "The Inner error is reported as above. The process exits for this inner error, and the current working operator "
    "name is {name}.\n[ERROR] ERR00100 PTA call acl api failed."
)
"""The error that torch_npu 2.13 raises from its task queue for any cause."""

_NAMES = frozenset(Path(__file__).with_name("torch_npu_names.txt").read_text(encoding="utf-8").split())
"""Public names of torch.npu, from torch_npu/npu/__init__.py of Ascend/pytorch."""

_ON_CPU, _ON_NPU = 1, 12  # DLPack's device types kDLCPU and kDLExtDev; the second is torch's PrivateUse1
_MIXED = {
    "aten::_copy_from",
    "aten::_copy_from_and_resize",
    "aten::index",
    "aten::index_put_",
    "aten::_index_put_impl_",
}
"""Operations that accept CPU tensors together with a device's tensors."""

_COLOURS = 3


@dataclass
class Npu:
    """The simulated hardware: its properties, the calls it received, and the faults to simulate."""

    version: str = torch.__version__.partition("+")[0]
    """The installed version of torch_npu; it must match torch's version."""

    chip: str = "Ascend910B4"
    """The name of the chip, as torch.npu.get_device_name returns it."""

    count: int = 1
    capacity_bytes: int = 64 << 30
    allocated_bytes: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    """The number of calls of each operation, and of each function of torch.npu and torch_npu."""

    set_device_threads: list[str] = field(default_factory=list)
    """The names of the threads that made a device current."""

    allocations_to_fail: int = 0
    """The number of next allocations that raise the caching allocator's out-of-memory error."""

    error: Exception | None = None
    """The next operation raises this error once."""

    refusal: Exception | None = None
    """Every operation raises this error on the host."""

    queue: Literal["alive", "dying", "dead"] = "alive"
    """`dying`: the next operation raises the queue's error, and then the queue is dead. `dead`: operations return
    normally but compute nothing; results hold what the memory held before. Copies to and from the host still work."""

    hf32: dict[str, bool] = field(default_factory=lambda: {"conv": True, "matmul": False})
    """The operations that round fp32 operands to HF32; torch_npu's defaults (torch_npu/npu/npu_config.py)."""

    picture_value: float | None = None
    """The value of every pixel of a convolution to three channels, as when the VAE overflows."""

    missing: set[str] = field(default_factory=set)
    """Fused operators that torch_npu does not have for this chip."""

    lies: set[str] = field(default_factory=set)
    """Fused operators that compute something else."""

    later_lies: set[str] = field(default_factory=set)
    """Fused operators that do so from their thirteenth call on, when the check at the start is over."""

    costs_s: dict[str, float] = field(default_factory=dict)
    """Seconds that the device takes longer for each call of an operation."""

    launch_s: float = 0.0
    """Seconds that the host takes for each launch. A replayed graph is one."""

    replaying: bool = False
    """Whether a graph is replayed."""

    graph_fault: Literal["", "raise", "exit"] = ""
    """The fault of a graph that is compiled: an error, or the end of the process."""

    hang: threading.Event | None = None
    """While this event is unset, operations wait for it."""

    cache: dict[int, torch.Tensor] = field(default_factory=dict)
    """The last result of each size in bytes: the block that the caching allocator would reuse."""

    launches: Counter[str] = field(default_factory=Counter)
    """The number of kernels that the device got, by operation: no views, no allocations. A fused operator is one."""

    hidden: Counter[str] = field(default_factory=Counter)
    """The number of kernels that op-plugin and CANN launch beside an operation's own, by reason: copies of arguments
    that are not contiguous (l0op::Contiguous), layouts of convolutions (aclnn_convolution.cpp of ops-nn), and masks
    (ScaledDotProductAttentionKernelNpuOpApi.cpp of op-plugin)."""

    copies: Counter[str] = field(default_factory=Counter)
    """The number of copies `to the device` and `to the host`."""

    waits: Counter[str] = field(default_factory=Counter)
    """How often the host waited for the device, by reason: torch_npu waits for the stream at each copy that is
    blocking, or whose host memory is not pinned (CopyKernelOpApi.cpp of Ascend/pytorch)."""

    hollow: set[int] = field(default_factory=set)
    """Addresses of memory without content. An operation on it is not computed: its result is hollow, too. The result of
    a convolution to three channels is not: it is a ramp, and stands for a picture."""

    allocates_hollow: bool = False
    """Whether new memory is hollow."""

    def enter(self, name: str) -> None:
        """Begin an operation: count it, and raise a simulated fault if one is set."""
        self.calls[name] += 1
        cost_s = self.costs_s.get(name.partition(".")[2] or name, 0.0) + self.launch_s * (not self.replaying)
        if cost_s:
            time.sleep(cost_s)
        if self.hang is not None:
            self.hang.wait()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.refusal is not None:
            raise self.refusal
        if self.queue == "dying":
            self.queue = "dead"
            raise RuntimeError(INNER_ERROR.format(name=name))

    def allocate(self, size_bytes: int, index: int) -> None:
        """Allocate memory, or raise the error of torch_npu's caching allocator."""
        if self.allocated_bytes + size_bytes > self.capacity_bytes:
            self.cache.clear()  # the real allocator also clears its cache before it fails
        if self.allocations_to_fail:
            self.allocations_to_fail -= 1
        elif self.allocated_bytes + size_bytes <= self.capacity_bytes:
            self.allocated_bytes += size_bytes
            return
        raise torch.OutOfMemoryError(
            f"NPU out of memory. Tried to allocate {size_bytes / 2**20:.2f} MiB (NPU {index}; "
            f"{self.capacity_bytes / 2**30:.2f} GiB total capacity; "
            f"{self.allocated_bytes / 2**30:.2f} GiB already allocated)"
        )

    def free(self, size_bytes: int, address: int) -> None:
        self.allocated_bytes -= size_bytes
        self.hollow.discard(address)

    def heal(self) -> None:
        """Reset everything except the allocated memory."""
        new = vars(Npu())
        del new["allocated_bytes"]
        vars(self).update(new)
        torch._dynamo.reset()  # else the next model of the same shapes reuses this one's graphs


npu = Npu()
_thread = threading.local()  # the current device is per thread as in torch_npu, and 0 at first
_libraries: list[torch.library.Library] = []


# Tensors, as seen by the device and by the host.


class _DeviceStruct(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _TensorStruct(ctypes.Structure):
    """The first fields of DLManagedTensor, up to the device."""

    _fields_ = (("data", ctypes.c_void_p), ("device", _DeviceStruct))


_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _relabelled(tensor: torch.Tensor, kind: int, index: int) -> torch.Tensor:
    capsule = torch._C._to_dlpack(tensor.detach() if tensor.requires_grad else tensor)
    struct = _TensorStruct.from_address(_pointer_in(capsule, b"dltensor"))
    struct.device.type, struct.device.index = kind, index
    with torch.inference_mode(mode=False):  # an inference tensor cannot be a view of a parameter
        aliased: torch.Tensor = torch._C._from_dlpack(capsule)
    return aliased


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a CPU tensor."""
    return _relabelled(tensor, _ON_CPU, 0)


def _on_device(tensor: torch.Tensor, index: int) -> torch.Tensor:
    """The same memory as a tensor on the device."""
    if tensor.dtype == torch.float64:
        raise RuntimeError("fp64 is not supported on npu")
    return _relabelled(tensor.resolve_conj().resolve_neg(), _ON_NPU, index)


class _Owned:
    """An object that is freed with the storage that it is attached to."""


def _new(tensor: torch.Tensor, index: int, *, hollow: bool = False) -> torch.Tensor:
    """Turn a result that the host computed into a tensor on the device with its own memory."""
    storage = tensor.untyped_storage()
    size_bytes = storage.nbytes()
    npu.allocate(size_bytes, index)
    storage._simulated = _Owned()  # type: ignore[attr-defined] # lives as long as the C++ storage
    weakref.finalize(storage._simulated, npu.free, size_bytes, storage.data_ptr())  # type: ignore[attr-defined]
    if hollow or npu.allocates_hollow:
        npu.hollow.add(storage.data_ptr())
    else:
        npu.cache[size_bytes] = tensor
    return _on_device(tensor, index)


def _stale(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape that holds the previous content of its memory."""
    stale = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype).zero_()
    before = npu.cache.get(stale.untyped_storage().nbytes())
    if before is not None:
        stale.untyped_storage().copy_(before.untyped_storage())
    return stale


def _index_of(device: Any) -> int:
    """The index of a device; without one, this thread's current device."""
    index: int | None = None if device is None else torch.device(device).index
    if index is None:
        index = getattr(_thread, "index", 0)
    if index >= npu.count:
        raise RuntimeError(f"Invalid device ID: npu:{index} of {npu.count}. EE1001: The argument is invalid.")
    return index


# Operations. `_on_cpu` runs all operations without a kernel of their own below.


def _tensors_in(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


def _check_devices(name: str, tensors: Sequence[torch.Tensor]) -> int | None:
    """Return the index of the tensors' only device, or None if no tensor is on a device."""
    devices = {tensor.device for tensor in tensors if tensor.device.type == "npu"}
    if name not in _MIXED:  # a tensor with 0 dimensions counts as a number
        devices |= {tensor.device for tensor in tensors if tensor.device.type != "npu" and tensor.dim() > 0}
    if len(devices) > 1:
        found = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {found}! ({name})"
        )
    return next((device.index for device in devices if device.type == "npu"), None)


def _on_cpu(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run one operation on the CPU, with the device's tensors as CPU tensors."""
    name = op._schema.name
    npu.enter(name)
    tensors = list(_tensors_in([*args, *kwargs.values()]))
    index = _check_devices(name, tensors)
    if index is None:
        index = _index_of(kwargs.get("device"))
    if kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'npu' device type for generator but found 'cpu'")

    aliases = {id(tensor): on_host(tensor) for tensor in tensors if tensor.device.type == "npu"}
    grown = _growing_outputs(op, kwargs)
    aliases |= {id(tensor): torch.empty(0, dtype=tensor.dtype) for tensor in grown}

    if npu.queue == "dead" and op._schema.is_mutable and not grown:
        return _written(op, args, kwargs)  # a dead queue writes nothing in place
    if _is_view(op):
        pass
    elif name == "aten::_local_scalar_dense":
        npu.copies["to the host"] += 1
        npu.waits["a number to the host"] += 1
    else:
        npu.launches[name] += 1
        _count_hidden(name, args, kwargs, list(aliases.values()))
    if npu.hollow and not _is_view(op) and any(map(_is_hollow, aliases.values())):
        return _not_computed(op, args, kwargs, index, partial(_for_host, aliases))
    if npu.hf32["conv" if name == "aten::convolution" else "matmul"] and name in _ROUNDED:
        aliases = {key: _hf32(tensor) for key, tensor in aliases.items()}
    host = partial(_for_host, aliases)
    result = op(*map(host, args), **{key: host(value) for key, value in kwargs.items()})
    if npu.picture_value is not None and name.startswith("aten::convolution") and result.shape[1] == _COLOURS:
        result = torch.full_like(result, npu.picture_value)
    for tensor in grown:
        made = aliases[id(tensor)]
        tensor.data = _new(_stale(made) if npu.queue == "dead" else made, index)
    ours = {id(aliases[id(tensor)]): tensor for tensor in tensors if id(tensor) in aliases}
    memory = {alias.untyped_storage().data_ptr() for alias in aliases.values() if alias.numel()}
    return _for_device(ours, memory, index, result)


def _is_view(op: Any) -> bool:
    """Tell whether the operation returns its argument's memory in another shape."""
    returned = op._schema.returns
    return op is aten._unsafe_view.default or any(
        value.alias_info is not None and not value.alias_info.is_write for value in returned
    )


def _is_hollow(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in npu.hollow


def _not_computed(op: Any, args: Sequence[Any], kwargs: dict[str, Any], index: int, host: Callable[[Any], Any]) -> Any:
    """Return hollow tensors of the shapes that the operation would return."""
    name = op._schema.name
    assert name != "aten::_local_scalar_dense", "the host reads a number that was not computed"
    if op._schema.is_mutable:
        assert not _growing_outputs(op, kwargs), f"the shape of {name}'s result is not known"
        written = _written(op, args, kwargs)
        npu.hollow.update(on_host(tensor).untyped_storage().data_ptr() for tensor in _tensors_in([written]))
        return written
    if name == "aten::convolution":
        return _picture_or_hollow(op, args, kwargs, index, host)
    return _hollow_results(op, list(map(host, args)), {key: host(value) for key, value in kwargs.items()}, index)


def _picture_or_hollow(
    op: Any, args: Sequence[Any], kwargs: dict[str, Any], index: int, host: Callable[[Any], Any]
) -> torch.Tensor:
    made: torch.Tensor = _hollow_results(op, list(map(host, args)), {key: host(kwargs[key]) for key in kwargs}, index)
    if made.shape[1] != _COLOURS:
        return made
    return _new(torch.linspace(-1, 1, made.numel()).reshape(made.shape).to(made.dtype), index)


def _hollow_results(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], index: int) -> Any:
    """Return hollow tensors of the shapes that a function returns for these arguments of the host."""
    key = repr((str(function), _described(args), _described(kwargs)))
    if key not in _shapes:
        shapes = function(*_on_meta(list(args)), **_on_meta(kwargs))
        _shapes[key] = _described(shapes)

    def hollow(value: Any) -> Any:
        if isinstance(value, _Shape):
            made = torch.empty_strided(value.size, value.stride, dtype=value.dtype)
            return _new(made, index, hollow=True)
        return type(value)(map(hollow, value)) if isinstance(value, list | tuple) else value

    return hollow(_shapes[key])


@dataclass(frozen=True)
class _Shape:
    """A tensor without its content."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


_shapes: dict[str, Any] = {}
"""The results' shapes of operations, by their arguments: the same layers come many times."""


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _Shape(tuple(value.shape), tuple(value.stride()), value.dtype)
    if isinstance(value, dict):
        return {key: _described(item) for key, item in value.items()}
    return type(value)(map(_described, value)) if type(value) in (list, tuple) else value


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, dict):
        return {key: _on_meta(item) for key, item in value.items()}
    if isinstance(value, torch.device):
        return torch.device("meta")
    return type(value)(map(_on_meta, value)) if type(value) in (list, tuple) else value


_PRODUCTS = frozenset({"aten::linear", "aten::addmm", "aten::mm", "aten::bmm", "aten::matmul", "aten::baddbmm"})
"""Operations that take a transposed weight as it is (matmul_util.cpp of CANN's ops-nn)."""


def _count_hidden(name: str, args: Sequence[Any], kwargs: dict[str, Any], tensors: Sequence[torch.Tensor]) -> None:
    if name == "aten::convolution":
        npu.hidden["layouts of convolutions"] += 3
    elif name == "aten::scaled_dot_product_attention":
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        is_causal = args[5] if len(args) > 5 else kwargs.get("is_causal", False)
        is_plain = npu.chip.startswith("Ascend310P") or (mask is not None and mask.dtype != torch.bool)
        npu.hidden["masks"] += 2 * is_causal + (mask is not None and not is_plain)
        npu.hidden["attention without a kernel of its own"] += 4 * is_plain
    _count_copies(name, tensors)


def _count_copies(name: str, tensors: Sequence[torch.Tensor]) -> None:
    for tensor in tensors:
        is_transposed = name in _PRODUCTS and tensor.dim() > 1 and tensor.mT.is_contiguous()
        if not (tensor.is_contiguous() or is_transposed or 0 in tensor.stride()):
            npu.hidden["copies of arguments"] += 1


_ROUNDED = frozenset({"aten::convolution", "aten::linear", "aten::addmm", "aten::mm", "aten::bmm"})
"""Operations that can round to HF32."""


def _hf32(tensor: torch.Tensor) -> torch.Tensor:
    """Round fp32 to HF32, which keeps 11 of the 23 mantissa bits."""
    if tensor.dtype != torch.float32:
        return tensor
    return ((tensor.contiguous().view(torch.int32) + (1 << 11)) & ~((1 << 12) - 1)).view(torch.float32)


def _for_host(aliases: dict[int, torch.Tensor], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return aliases.get(id(value), value)
    if isinstance(value, list | tuple):
        return type(value)(_for_host(aliases, item) for item in value)
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _for_device(ours: dict[int, torch.Tensor], memory: set[int], index: int, value: Any) -> Any:
    """Turn a CPU result into a device tensor: the caller's own tensor, a view of one, or a new one."""
    if isinstance(value, list | tuple):
        return type(value)(_for_device(ours, memory, index, item) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    if id(value) in ours:  # written in place
        return ours[id(value)]
    if value.numel() and value.untyped_storage().data_ptr() in memory:
        return _on_device(value, index)
    return _new(_stale(value) if npu.queue == "dead" else value, index)


def _growing_outputs(op: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The empty `out` tensors that the kernel resizes. They need this because an alias cannot be resized."""
    outputs = [kwargs.get(argument.name) for argument in op._schema.arguments if argument.is_out]
    return [tensor for tensor in outputs if isinstance(tensor, torch.Tensor) and tensor.numel() == 0]


def _written(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The tensors that an in-place operation writes and returns."""
    named = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)) | kwargs
    written = [
        named[argument.name]
        for argument in op._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name in named
    ]
    return written[0] if len(written) == 1 else tuple(written)


def _empty(size: Any, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any) -> torch.Tensor:
    npu.enter("aten::empty")
    made = torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format)
    return _new(_stale(made) if npu.queue == "dead" else made, _index_of(device))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> torch.Tensor:
    npu.enter("aten::empty_strided")
    made = torch.empty_strided(size, stride, dtype=dtype)
    return _new(_stale(made) if npu.queue == "dead" else made, _index_of(device))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Copy a tensor. Copies within a device go through the queue; copies from or to the host do not."""
    npu.enter("aten::_copy_from")
    within = source.device.type == target.device.type == "npu"
    if within:
        npu.launches["aten::_copy_from"] += 1
        if _is_hollow(on_host(source)):
            npu.hollow.add(on_host(target).untyped_storage().data_ptr())
            return target
    else:
        direction = "to the device" if target.device.type == "npu" else "to the host"
        npu.copies[direction] += 1
        if not (non_blocking and (source if target.device.type == "npu" else target).is_pinned()):
            npu.waits[f"a copy {direction}"] += 1
    if not (within and npu.queue == "dead"):
        from_ = on_host(source) if source.device.type == "npu" else source
        to = on_host(target) if target.device.type == "npu" else target
        to.copy_(from_)
    return target


_pinned: set[int] = set()
"""Addresses of the host's pinned memory."""


def _pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    del device
    pinned = tensor.clone()
    storage = pinned.untyped_storage()
    storage._pinned = _Owned()  # type: ignore[attr-defined] # lives as long as the C++ storage
    _pinned.add(storage.data_ptr())
    weakref.finalize(storage._pinned, _pinned.discard, storage.data_ptr())  # type: ignore[attr-defined]
    return pinned


def _is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    del device
    return tensor.untyped_storage().data_ptr() in _pinned


def _convolution(*args: Any) -> Any:
    return _on_cpu(aten.convolution.default, *args)


_WHOLE_KERNELS = (
    "native_group_norm",
    "native_layer_norm",
    "mean.dim",
    "upsample_nearest2d",
    "linear",
    "matmul",
    "softmax.int",
    "_softmax",
    "addmm",
    "silu",
    "gelu",
    "div.Tensor",
    "scaled_dot_product_attention",
)
"""Operations that torch decomposes for a device without a kernel. The CPU's own kernels round differently."""


def _whole(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    op = getattr(getattr(aten, packet), overload or "default")
    return lambda *args, **kwargs: _on_cpu(op, *args, **kwargs)


def _whole_or_traced(name: str) -> Callable[..., Any]:
    """Like `_whole`, for operations that torch decomposes before dispatch. Fake tensors of torch.compile still are."""
    op = getattr(aten, name).default
    whole = _whole(name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(tensor, FakeTensor) for tensor in _tensors_in(args)):
            return op.decompose(*args, **kwargs)
        return whole(*args, **kwargs)

    return call


# torch.npu and torch_npu.


class _NpuModule(types.ModuleType):
    """torch.npu, with the names that the service uses. It rejects names that torch_npu does not have."""

    def __setattr__(self, name: str, value: object) -> None:
        assert name in _NAMES or name.startswith("_"), f"torch.npu.{name} does not exist"
        super().__setattr__(name, value)


class _Config:
    """torch.npu.config: write-only in torch_npu 2.13."""

    def __setattr__(self, name: str, value: object) -> None:
        assert name == "allow_internal_format", f"torch.npu.config.{name} does not exist"
        npu.calls[f"config.{name}={value}"] += 1


class _Hf32:
    """torch.npu.conv and torch.npu.matmul. Like torch_npu's, they ignore unknown names."""

    def __init__(self, kind: str) -> None:
        self.__dict__["kind"] = kind

    def __setattr__(self, name: str, value: object) -> None:
        if name == "allow_hf32":
            assert isinstance(value, bool)
            npu.hf32[self.__dict__["kind"]] = value

    def __getattr__(self, name: str) -> bool | None:
        return npu.hf32[self.__dict__["kind"]] if name == "allow_hf32" else None


class _Functions:
    """The simulated functions of torch.npu."""

    @staticmethod
    def is_available() -> bool:
        return npu.count > 0

    @staticmethod
    def device_count() -> int:
        return npu.count

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return getattr(_thread, "index", 0)

    @staticmethod
    def set_device(device: Any) -> None:
        npu.set_device_threads.append(threading.current_thread().name)
        _thread.index = _index_of(torch.device("npu", device) if isinstance(device, int) else device)

    @staticmethod
    def synchronize(device: Any = None) -> None:
        del device
        npu.waits["synchronize"] += 1
        npu.enter("synchronize")

    @staticmethod
    def empty_cache() -> None:
        npu.cache.clear()

    @staticmethod
    def mem_get_info(device: Any = None) -> tuple[int, int]:
        del device
        return npu.capacity_bytes - npu.allocated_bytes, npu.capacity_bytes

    @staticmethod
    def get_device_name(device: Any = None) -> str:
        del device
        return npu.chip

    @staticmethod
    def set_compile_mode(*, jit_compile: bool) -> None:
        npu.calls[f"jit_compile={jit_compile}"] += 1

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        del seed

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def _torch_npu_npu() -> types.ModuleType:
    module = _NpuModule("torch.npu")
    for name, function in vars(_Functions).items():
        if isinstance(function, staticmethod):
            setattr(module, name, partial(_counted, name, function))
    module.__dict__["_is_in_bad_fork"] = lambda: False
    module.config = _Config()
    module.conv, module.matmul = _Hf32("conv"), _Hf32("matmul")
    module.npugraph_ex = types.SimpleNamespace(inference=types.SimpleNamespace(cache_compile=_cache_compile))
    module.__spec__ = importlib.machinery.ModuleSpec("torch.npu", None)
    return module


def _counted(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    npu.calls[f"torch.npu.{name}"] += 1
    return function(*args, **kwargs)


def _torch_npu() -> types.ModuleType:
    """A stand-in for torch_npu with its fused kernels."""
    module = types.ModuleType("torch_npu")
    module.__dict__.update(
        __version__=npu.version,
        __path__=[],
        __spec__=importlib.machinery.ModuleSpec("torch_npu", None),
        npu=sys.modules["torch.npu"],
        npu_fusion_attention=None,  # diffusers imports it, and the service does not call it
        **{name: getattr(torch.ops.npu, name) for name in KERNELS},
    )
    return module


_CHECKED_CALLS = 12


def _register_fused(library: torch.library.Library, name: str, kernel: Kernel) -> None:
    library.define(f"{name}{kernel.schema}")
    library.impl(name, partial(_run_fused, name, kernel), "PrivateUse1")
    torch.library.register_fake(f"npu::{name}", kernel.compute)


def _run_fused(name: str, kernel: Kernel, *args: Any, **kwargs: Any) -> Any:
    npu.enter(f"torch_npu.{name}")
    npu.launches[f"torch_npu.{name}"] += 1
    if name in npu.missing or not npu.chip.startswith(kernel.chips):
        raise RuntimeError(f"{name} is not supported on {npu.chip}")
    tensors = list(_tensors_in([*args, *kwargs.values()]))
    index = _check_devices(name, tensors)
    assert index is not None
    aliases = {id(tensor): on_host(tensor) for tensor in tensors}
    host = partial(_for_host, aliases)
    host_args, host_kwargs = [host(argument) for argument in args], {key: host(value) for key, value in kwargs.items()}
    is_hollow = any(map(_is_hollow, aliases.values()))
    kernel.check(npu.chip, *host_args, **host_kwargs)
    _count_copies(name, list(aliases.values()))
    if is_hollow:
        return _hollow_results(kernel.compute, host_args, host_kwargs, index)
    result = kernel.compute(*host_args, **host_kwargs)
    results = result if isinstance(result, tuple) else (result,)
    if name in npu.lies or (name in npu.later_lies and npu.calls[f"torch_npu.{name}"] > _CHECKED_CALLS):
        results = tuple(part * 1.5 for part in results)
    made = tuple(_new(_stale(part) if npu.queue == "dead" else part, index) for part in results)
    return made if isinstance(result, tuple) else made[0]


_GRAPH_OPTIONS = {"capture_limit": int, "clone_output": bool, "frozen_parameter": bool}
"""Options of npugraph_ex that the service uses, with their types (configs/compiler_config.py of torch_npu 2.13)."""


def _check_graph_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        assert isinstance(value, _GRAPH_OPTIONS[name]), name
    assert options["clone_output"], "the next call would overwrite the result"


def _npugraph_ex(graph: Any, _: object, **settings: Any) -> Any:
    """A stand-in for torch_npu's backend of torch.compile. It computes as the operations would, with one launch."""
    _check_graph_options(settings["options"])
    npu.calls["npugraph_ex"] += 1
    if npu.graph_fault == "exit":
        os._exit(139)
    if npu.graph_fault == "raise":
        raise RuntimeError("ERR00100 PTA call acl api failed: 107027, the stream is being captured")
    return partial(_replayed, graph.forward)


def _replayed(forward: Callable[..., Any], *args: Any) -> Any:
    before = npu.launches.copy(), npu.hidden.copy()
    npu.replaying = True
    result = forward(*args)
    npu.replaying = False
    for counter, former in zip((npu.launches, npu.hidden), before, strict=True):
        counter.clear()
        counter.update(former)
    npu.launches["graph"] += 1
    return result


def _cache_compile(function: Any, *, dynamic: bool = True, cache_dir: str, options: dict[str, Any]) -> Any:
    """A stand-in for torch.npu.npugraph_ex.inference.cache_compile: it counts what it finds in the folder."""
    assert isinstance(function.__self__, torch.nn.Module), "it must be a method of a module"
    assert not dynamic
    _check_graph_options(options)
    found = Path(cache_dir) / "compiled_module"
    npu.calls["graphs from the cache" if found.exists() else "graphs into the cache"] += 1
    found.touch(mode=0o600)
    return torch.compile(function, backend="npugraph_ex", fullgraph=True, dynamic=False, options=options)


class _Finder:
    """Lets importlib find torch_npu and its version, because diffusers, transformers and accelerate look for them."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        return sys.modules["torch_npu"].__spec__ if name == "torch_npu" else None

    def find_distributions(self, context: Any = None) -> list[importlib.metadata.Distribution]:
        named = getattr(context, "name", None)
        return [_Distribution()] if named in (None, "torch_npu", "torch-npu") else []


class _Distribution(importlib.metadata.Distribution):
    def read_text(self, filename: str) -> str | None:
        is_metadata = filename == "METADATA"
        return f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {npu.version}\n" if is_metadata else None

    def locate_file(self, path: Any) -> Any:
        return path


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return npu.count > 0


def install() -> Npu:
    """Register `npu` as a device of torch, make torch_npu importable, and return the hardware."""
    if _libraries:
        return npu
    module = _torch_npu_npu()
    _setup_privateuseone_for_python_backend(
        "npu", backend_module=module, hook=_Hook(), device_guard=_DummyDeviceGuard()
    )
    sys.modules["torch.npu"] = module
    _register_kernels()
    _mend_deepcopy()
    sys.modules["torch_npu"] = _torch_npu()
    torch._dynamo.register_backend(_npugraph_ex, name="npugraph_ex")
    sys.meta_path.insert(0, _Finder())  # finds only torch_npu
    return npu


def _register_kernels() -> None:
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_on_cpu, "PrivateUse1")
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("empty.memory_format", _empty, "PrivateUse1")
    kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
    kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    kernels.impl("convolution_overrideable", _convolution, "PrivateUse1")
    for name in _WHOLE_KERNELS:
        kernels.impl(name, _whole(name), "PrivateUse1")
    for name in ("linear", "matmul", "scaled_dot_product_attention"):
        kernels.impl(name, _whole_or_traced(name), "AutogradPrivateUse1")
    kernels.impl("_pin_memory", _pin_memory, "CPU")
    kernels.impl("is_pinned", _is_pinned, "CPU")
    fused = torch.library.Library("npu", "DEF")
    for name, kernel in KERNELS.items():
        _register_fused(fused, name, kernel)
    _libraries.extend([everything, kernels, fused])


def _mend_deepcopy() -> None:
    """Deep-copy the device's tensors with an operation, because torch's own code needs an allocator in C++."""
    stock = torch.Tensor.__deepcopy__

    def deepcopy(tensor: torch.Tensor, memo: dict[int, Any]) -> Any:
        if tensor.device.type == "npu" and type(tensor) is torch.Tensor:
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return stock(tensor, memo)

    torch.Tensor.__deepcopy__ = deepcopy  # type: ignore[method-assign]
