"""The header of a safetensors file: the names, shapes and formats of its tensors, without their values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from app.errors import MemoryTooSmallError, WeightsError


@dataclass(frozen=True, slots=True)
class Header:
    """A file's tensors by name.

    Attributes:
        shapes: The shape of each tensor.
        dtypes: The number format of each tensor as the file names it: F16, BF16, F32, ...
        metadata: Texts that programs write about the file.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]


class Place(NamedTuple):
    """Where a tensor is in a file: `size_bytes` after the end of the tensor before it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def read_header(path: Path) -> Header:
    """Read the header, which also checks the file's length.

    Raises:
        WeightsError: The file is missing or damaged.
        MemoryTooSmallError: The file is larger than the address space that the process may use.
    """
    try:
        with path.open("rb"), safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            return Header(
                {name: tuple(part.get_shape()) for name, part in slices.items()},
                {name: str(part.get_dtype()) for name, part in slices.items()},
                dict(file.metadata() or {}),
            )
    except FileNotFoundError as error:
        raise WeightsError(f"There is no file {path}.") from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}. Delete it and pull again.") from error
    except MemoryError as error:  # the library maps the whole file
        raise MemoryTooSmallError(f"{path} does not fit into memory: {error}.") from error


def read_places(path: Path, file: FileIO) -> tuple[bytes, Sequence[Place]]:
    """Read the header of an open file; return its bytes and the tensors in the order of their data, which follows.

    Raises:
        WeightsError: The file is damaged.
    """
    # The format: the header's length in 8 bytes, JSON, and the tensors without gaps
    # (https://huggingface.co/docs/safetensors/index#format). `read_header` has checked the same file.
    length = file.read(8)
    header = file.read(int.from_bytes(length, "little"))
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        in_order = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
        spans = [entry["data_offsets"] for _, entry in in_order]
        ends = [end for _, end in spans]
        places = [
            Place(name, str(entry["dtype"]), tuple(entry["shape"]), end - begin)
            for (name, entry), (begin, end) in zip(in_order, spans, strict=True)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(path) from error
    if [begin for begin, _ in spans] != [0, *ends][:-1]:
        raise _unreadable(path)
    return length + header, places


def _unreadable(path: Path) -> WeightsError:
    return WeightsError(f"{path} is damaged: its header cannot be read. Delete it and pull again.")
