"""Fills models with their weights while the files are read: each tensor goes from the file's bytes to its device."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from app.errors import DeviceOutOfMemoryError, MemoryTooSmallError
from app.pipelines.checkpoint import Checkpoint, ModelFolder, NamedTensor, weights_errors
from app.pipelines.device_errors import device_errors
from app.pipelines.host_memory import return_freed_memory
from app.pipelines.lora import LoraDeltas
from app.pipelines.networks.int8 import quantize
from app.weights.reading import ReadAhead

_CONVOLUTION_DIM = 4

_Map = Callable[[Callable[[NamedTensor], torch.Tensor], Iterable[NamedTensor]], Iterable[torch.Tensor]]


class Source(NamedTuple):
    """Weights of some models, and their name in errors."""

    weights: str
    checkpoint: Checkpoint | ModelFolder


@dataclass(frozen=True)
class Loader:
    """Fills models.

    Attributes:
        sources: Where the tensors come from.
        deltas: What LoRAs add to them.
        device: Where the models are to be.
        dtype: The number format of the models, in int8 of what is not in int8.
        in_int8: The names of the models whose large layers are to be in int8.
        channels_last: The names of the models whose weights of convolutions are to be in this layout on a CPU.
    """

    sources: Collection[Source]
    _: KW_ONLY
    deltas: LoraDeltas
    device: torch.device
    dtype: torch.dtype
    in_int8: Collection[str] = ()
    channels_last: Collection[str] = ()

    def fill(self, models: Mapping[str, Any], reading: ReadAhead) -> None:
        """Read all files and fill the models, by name, which have no weights yet.

        Raises:
            WeightsError: A file is damaged, or a model lacks tensors.
            MemoryTooSmallError: The weights do not fit into the device's memory.
            DeviceLostError: The device failed.
        """
        ready: dict[str, dict[str, torch.Tensor]] = {name: {} for name in models}
        with self._converting() as convert:
            for piece in reading:
                for source in self.sources:
                    with weights_errors(source.weights):
                        self._take(source, source.checkpoint.tensors(piece), convert, ready)
                self._quantize(models, ready)
            for source in self.sources:
                with weights_errors(source.weights):
                    self._take(source, source.checkpoint.rest(), convert, ready)
            self._quantize(models, ready)
        for name, model in models.items():
            if name not in self.in_int8:
                model.load_state_dict(ready.pop(name), strict=False, assign=True)
            model.to(self.dtype).eval()

    @contextmanager
    def _converting(self) -> Iterator[_Map]:
        """Yield a `map` that uses all threads of a CPU, each for tensors of its own.

        torch would divide each tensor among its threads, and wait for one that has no core because of the hashing. An
        accelerator is used by the calling thread alone.
        """
        if self.device.type != "cpu":
            yield map
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, thread_name_prefix="convert") as pool:
                yield pool.map
        finally:
            torch.set_num_threads(threads)

    def _take(
        self,
        source: Source,
        tensors: Iterable[NamedTensor],
        convert: _Map,
        ready: Mapping[str, dict[str, torch.Tensor]],
    ) -> None:
        """Convert tensors; the results share no memory with them."""
        some = list(tensors)
        for (model, name, _), tensor in zip(some, convert(partial(self._convert, source), some), strict=True):
            ready[model][name] = tensor

    def _convert(self, source: Source, named: NamedTensor) -> torch.Tensor:
        model, name, tensor = named
        whole = self.deltas.add(model, name, tensor)
        read_as = torch.float32 if model in self.in_int8 else self.dtype
        if self.device.type != "cpu":
            return self._move(whole.to(read_as), source)
        is_last = model in self.channels_last and whole.dim() == _CONVOLUTION_DIM and model not in self.in_int8
        layout = torch.channels_last if is_last else torch.preserve_format
        return whole.to(read_as, copy=True, memory_format=layout)

    def _move(self, tensor: torch.Tensor, source: Source) -> torch.Tensor:
        try:
            with device_errors(self.device):
                return tensor.to(self.device)
        except DeviceOutOfMemoryError as error:
            raise MemoryTooSmallError(f"{source.weights} do not fit into the memory of {self.device}.") from error

    def _quantize(self, models: Mapping[str, Any], ready: Mapping[str, dict[str, torch.Tensor]]) -> None:
        """Give the models in int8 what is ready, at once: in fp32 it takes four times as much memory."""
        for name in self.in_int8:
            if ready[name]:
                models[name].load_state_dict(ready[name], strict=False, assign=True)
                ready[name].clear()
                quantize(models[name], self.dtype)
                return_freed_memory()
