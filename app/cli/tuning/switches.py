"""The switches that `tune` varies: their plainest values, and the values to try on each kind of device, in order."""

from collections.abc import Generator, Mapping, Sequence
from enum import StrEnum
from typing import Final

from app.settings import FUSED_OPERATORS

Change = Mapping[str, str]
"""Names of settings, each with the text of its new value."""


class Verdict(StrEnum):
    """The result of a trial."""

    REFERENCE = "reference"
    """Of the reference itself, and of a change that changes nothing."""
    ACCEPTED = "accepted"
    NO_GAIN = "no gain"
    SLOWER = "slower"
    DIFFERS = "differs"
    DEAD = "dead pictures"
    FAILED = "failed"
    NOT_TRIED = "not tried"
    VERIFIED = "verified"
    """Of the winner, once it is compared with the reference."""


Plan = Generator[Change, Verdict, None]
"""Yields the changes to try, each to be added to the best settings so far, and receives their verdicts."""

PLAINEST: Final[Change] = {
    "dtype": "auto",
    "fused_operators": "off",
    "npu_graphs": "false",
    "compile": "off",
    "vae": "",
    "vae_dtype": "auto",
    "allow_tf32": "false",
    "channels_last": "auto",
    "threads": "0",
    "batching": "off",
    "max_batch": "8",
}
"""The reference's value of each switch, unless the operator has set it. They use no kernel that a device may lack."""

TAESDXL = ("hf:madebyollin/taesdxl",)
"""VAEs that are tried if they are pulled (`python -m app pull --vae`)."""

SWITCHES: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "npu": {
        "fused_operators": FUSED_OPERATORS,
        "npu_graphs": ("true",),
        "vae": TAESDXL,
        "vae_dtype": ("bf16", "fp16", "fp32"),
        "channels_last": ("on",),
        "batching": ("exact", "fast"),
        "max_batch": ("8", "16", "4", "2"),
    },
    "cuda": {
        "compile": ("on",),
        "vae": TAESDXL,
        "vae_dtype": ("bf16", "fp16", "fp32"),
        "channels_last": ("on", "off"),
        "allow_tf32": ("true",),
        "batching": ("exact", "fast"),
        "max_batch": ("8", "16", "4", "2"),
    },
    "cpu": {
        "dtype": ("bf16", "int8", "fp32"),
        "threads": ("all", "half", "1"),
        "vae": TAESDXL,
        "channels_last": ("on", "off"),
        "batching": ("exact", "fast"),
        "max_batch": ("8", "16", "4", "2"),
    },
}
"""The switches of each kind of device, the larger expected gains first, with the values to try.

`fused_operators`, and `batching` with `max_batch`, are tried as `plan` says. `all` and `half` are shares of the cores.
"""


def plan(name: str, values: Mapping[str, Sequence[str]]) -> Plan:
    """Return what to try of a switch; `values` has the values of all switches that may vary."""
    if name == "fused_operators":
        return _fused_operators(values[name])
    if name in ("batching", "max_batch"):
        return _batching(values.get("batching", ("",)), values.get("max_batch", ("",)))
    return _each(name, values[name])


def _each(name: str, values: Sequence[str]) -> Plan:
    for value in values:
        yield {name: value}


def _fused_operators(operators: Sequence[str]) -> Plan:
    """Try all operators, then all but attention. If neither is usable, try each, and then those that are sound.

    Attention is the first suspect of a loss of speed: torch's own is fused too.
    """
    tried = [
        (yield {"fused_operators": "auto"}),
        (yield {"fused_operators": ",".join(name for name in operators if name != "attention")}),
    ]
    unusable = {Verdict.DIFFERS, Verdict.DEAD, Verdict.FAILED}
    if Verdict.ACCEPTED in tried or unusable.isdisjoint(tried):
        return
    used: list[str] = []
    sound: list[str] = []
    for name in operators:
        verdict = yield {"fused_operators": ",".join([*used, name])}
        if verdict is Verdict.ACCEPTED:
            used.append(name)
        if verdict in (Verdict.ACCEPTED, Verdict.NO_GAIN):
            sound.append(name)
    if sound != used:  # several small gains may be a gain together
        yield {"fused_operators": ",".join(sound)}


def _batching(modes: Sequence[str], sizes: Sequence[str]) -> Plan:
    """Try each mode at the first size; then at the next if that is accepted, else, if it fails, at the smaller ones.

    The service itself learns which batch sizes pay up to `max_batch`, so a larger one costs memory alone.
    """
    first, *others = sizes
    larger, smaller = others[:1], others[1:]
    for mode in modes:
        verdict = yield _batches(mode, first)
        if verdict in (Verdict.ACCEPTED, Verdict.REFERENCE):
            for size in larger:
                if (yield _batches(mode, size)) is Verdict.ACCEPTED:
                    first, larger = size, []
        elif verdict is Verdict.FAILED:
            for size in smaller:
                if (yield _batches(mode, size)) is not Verdict.FAILED:
                    break


def _batches(mode: str, size: str) -> Change:
    """Return the change to a mode and size; a text is empty if the operator has set the switch."""
    return {name: value for name, value in (("batching", mode), ("max_batch", size)) if value}
