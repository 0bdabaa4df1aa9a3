"""The header of a safetensors file: the names, shapes and formats of its tensors, without their values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
