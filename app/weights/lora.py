"""LoRAs: the value of `TURBO_LORA`, and the checks of their files."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from app.errors import WeightsError
from app.settings import split_list
from app.weights.digests import Digests
from app.weights.layout import Layout
from app.weights.safetensors_header import read_header
from app.weights.source import REPOSITORY, SUFFIX, HubSource, LocalSource, parse_place
from app.weights.store import locate

_SETTING = "TURBO_LORA"
_USUAL_NAME = f"pytorch_lora_weights{SUFFIX}"
"""diffusers' name of a LoRA's file (LORA_WEIGHT_NAME_SAFE)."""

_HALVES = (("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora.down", "lora.up"), ("layer.down", "layer.up"))
"""The names of a pair's tensors: in kohya's scripts, peft, and earlier versions of diffusers, twice."""

_OTHER_KINDS = {
    r"\.hada_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.oft_": "OFT",
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"lora_mid": "a LoRA in Tucker's form",
    r"\.diff(_b)?$": "differences of whole weights",
}
"""Patterns of tensors' names of other kinds of networks (LyCORIS), which would have to be added in another way."""


@dataclass(frozen=True, slots=True)
class LoraSource:
    """A LoRA and its weight: 0 changes nothing, 1 is as trained."""

    source: LocalSource | HubSource
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The name without path and owner, because clients see it."""
        return self.source.name.rpartition("/")[2]


class LoraFile(NamedTuple):
    """A LoRA on this disk."""

    path: Path
    name: str
    weight: float


def parse_loras(text: str) -> list[LoraSource]:
    """Read the LoRAs from the text of `TURBO_LORA`.

    Raises:
        WeightsError: A name is no LoRA's, or a weight no number.
    """
    return [_parse(word) for word in split_list(text)]


def _parse(word: str) -> LoraSource:
    place, colon, weight = word.rpartition(":")
    if not colon or place in ("hf", "openmind") or REPOSITORY.fullmatch(word):
        return LoraSource(parse_place(word, setting=_SETTING))
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise WeightsError(f"{_SETTING}={word}: {weight!r} is not a weight. Set a number, such as {place}:0.8.")
    return LoraSource(parse_place(place, setting=_SETTING), number)


def lora_file(place: Path) -> Path:
    """Return the file of a LoRA, which `place` is or has.

    Raises:
        WeightsError: There is none, or several.
    """
    if place.suffix == SUFFIX or place.is_file():
        return place
    if not place.is_dir():
        raise WeightsError(f"There is no file or folder {place}. Check {_SETTING}.")
    names = _choose(path.name for path in place.iterdir())
    if not names:
        number = "several" if any(path.suffix == SUFFIX for path in place.iterdir()) else "no"
        raise WeightsError(f"{place} has {number} {SUFFIX} files. Name one file in {_SETTING}.")
    return place / names.pop()


def _choose(paths: Iterable[str]) -> set[str]:
    files = {path for path in paths if path.endswith(SUFFIX) and "/" not in path}
    if _USUAL_NAME in files:
        return {_USUAL_NAME}
    return files if len(files) == 1 else set()


def check_lora(place: Path) -> None:
    """Check by the names of its tensors that a file is a complete LoRA. Reads only the file's header.

    Raises:
        WeightsError: It is not. The text names the tensor and says what to do.
    """
    path = lora_file(place)
    if path.suffix != SUFFIX:
        raise WeightsError(f"{path} is not a {SUFFIX} file. Pickles can run code, so they are not read.")
    names = read_header(path).shapes.keys()
    for name in sorted(names):
        if kind := next((kind for part, kind in _OTHER_KINDS.items() if re.search(part, name)), None):
            raise WeightsError(f"{path} is {kind}: it has {name}. Only LoRAs (and LoCons) can be fused.")
        for half, other in (*_HALVES, *(pair[::-1] for pair in _HALVES)):
            if f"{half}." in name and (lacking := name.replace(f"{half}.", f"{other}.")) not in names:
                raise WeightsError(f"{path} is incomplete: it has {name} and not {lacking}.")
    if not any(f"{half}." in name for name in names for half, _ in _HALVES):
        raise WeightsError(f"{path} is no LoRA: it has {min(names, default='no tensors')}. Check {_SETTING}.")


LORA = Layout(
    setting=_SETTING,
    record="lora--",
    files=f"{_USUAL_NAME}, or one {SUFFIX} file in the top folder. Of several, name one: HUB:OWNER/NAME:FILE{SUFFIX}",
    choose=_choose,
    main_config=None,
    check_main_config=check_lora,
    check=check_lora,
)


def locate_loras(text: str, weights_dir: Path, *, digests: Digests | None = None) -> list[LoraFile]:
    """Check the LoRAs of `TURBO_LORA` on this disk and return their files. Does not use the network.

    With `digests`, the hashes are expected there and not checked, as `locate` does it.

    Raises:
        WeightsError: The text is wrong, or a file is missing, has changed or is no LoRA.
    """
    return [
        LoraFile(lora_file(locate(lora.source, weights_dir, LORA, digests=digests)), lora.name, lora.weight)
        for lora in parse_loras(text)
    ]
