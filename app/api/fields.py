"""The fields of a request: checked strictly, or read as a dialect's clients send them.

The service's own routes reject what has no effect. The routes for other programs' clients ignore what those send by
habit, and name it in the answer. With `TURBO_STRICT` they reject it too. What would give another kind of picture than
the one asked for is rejected by both.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from app.api.errors import MAX_NAME_CHARACTERS
from app.api.json_body import FILLER
from app.errors import InvalidRequestError
from app.images.sizes import Size
from app.inference.field_names import UNKNOWN_REASON, meant, similar, unknown_reason
from app.modes.fields import MAX_PROMPT_CHARACTERS, context_of, smallest_strength
from app.pipelines.base import effective_steps
from app.settings import DEFAULT_MAX_STEPS, MAX_SIDE, Settings

Fields = TypeVar("Fields", bound=BaseModel)

GUIDANCE_REASON = "SDXL-Turbo is trained without guidance."
NEGATIVE_PROMPT_REASON = "A negative prompt needs guidance, which SDXL-Turbo is trained without."
SCHEDULER_REASON = "SDXL-Turbo has one scheduler, Euler ancestral."

MASK_REASON = "A mask needs the picture that it belongs to."
_PICTURE_REASON = "This request takes no such picture."
_OF_ANOTHER_KIND: Mapping[str, str] = {
    **dict.fromkeys(("latent_mask", "mask", "mask_image", "mask_url"), MASK_REASON),
    **dict.fromkeys(("conditioning_image", "control_image", "image", "image_url", "images"), _PICTURE_REASON),
    **dict.fromkeys(("init_image", "init_images", "input_image", "reference_images"), _PICTURE_REASON),
}
"""Names under which services take masks and pictures. Without them the answer would be another kind of picture."""

_MAX_TOLD = 20
"""An answer names up to this many ignored parameters, and looks for the right names of as many unknown ones."""


def checked(model: type[Fields], fields: Any, *, max_steps: int = DEFAULT_MAX_STEPS) -> Fields:
    """Return a body as its wire model; it may ask for `max_steps` denoising steps.

    Raises:
        RequestValidationError: A field is invalid or unknown. An unknown one is told its right name, if there is one.
    """
    faults: list[dict[str, Any]] = []
    checked_fields = _check(model, fields, (), faults, max_steps)
    if checked_fields is None:
        raise RequestValidationError(faults)
    return checked_fields


def _check(
    model: type[Fields], fields: Any, within: Sequence[str], faults: list[dict[str, Any]], max_steps: int
) -> Fields | None:
    """Return the fields as their wire model, or add their faults; the names in `within` lead to the fields."""
    try:
        return model.model_validate(fields, context=context_of(max_steps))
    except ValidationError as error:
        for number, fault in enumerate(error.errors()):
            if fault["type"] == "extra_forbidden" and number < _MAX_TOLD:
                fault["msg"] = unknown_reason(str(fault["loc"][-1]), model)
            faults.append({**fault, "loc": ("body", *within, *fault["loc"])})
    return None


def describe_leniency(
    schema: dict[str, Any], *, steps: str, ignored: Mapping[str, str], refused: Mapping[str, str]
) -> None:
    """Make a wire model's JSON schema that of a `Reading`: what is adjusted or ignored is valid.

    `steps` is the field with the denoising steps; `ignored` and `refused` have reasons by name.
    """
    properties = schema["properties"]
    for described in (properties[steps], *properties[steps].get("anyOf", ())):
        described.pop("maximum", None)
    properties[steps]["description"] = (
        "Denoising steps. One is enough, four are better; of more than TURBO_MAX_STEPS (4), so many run."
    )
    properties["prompt"].pop("maxLength", None)
    for described in properties.values():
        if "enum" in described and "default" in described:
            described["anyOf"] = [{"type": described.pop("type"), "enum": described.pop("enum")}, {"type": "null"}]
        elif isinstance(described.get("type"), str) and "default" in described:
            described["type"] = [described["type"], "null"]
    for name, reason in ignored.items():
        properties[name] = {"description": f"Without effect. {reason}"}
    for name, reason in refused.items():
        properties[name] = {"type": "null", "description": f"Rejected. {reason}"}
    schema["additionalProperties"] = True


@dataclass(frozen=True, slots=True)
class Told:
    """Parameters that were ignored or changed, for the answer's headers and its `warnings`."""

    ignored: Mapping[str, str] = field(default_factory=dict)
    """Reasons by name."""
    adjusted: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By name: the change, such as 20->4, and its reason."""

    @property
    def headers(self) -> dict[str, str]:
        """`X-Ignored-Parameters: quality, style` and `X-Adjusted-Parameters: num_inference_steps=20->4`."""
        headers = {
            "X-Ignored-Parameters": ", ".join(map(_printable, self.ignored)),
            "X-Adjusted-Parameters": ", ".join(f"{_printable(name)}={how}" for name, (how, _) in self.adjusted.items()),
        }
        return {name: value for name, value in headers.items() if value}

    @property
    def warnings(self) -> list[str]:
        """One sentence for each."""
        ignored = [f"{name} is ignored: {reason}" for name, reason in self.ignored.items()]
        return ignored + [f"{name} is changed, {how}: {reason}" for name, (how, reason) in self.adjusted.items()]


NOTHING_TOLD = Told()


class Reading:
    """A request of a dialect while it is read: first its habits, then its fields.

    `sent` has the fields as they came; null, and in a form an empty text, is left out. With `TURBO_STRICT`,
    a parameter that would be ignored or adjusted is a fault. All faults come in one answer.
    """

    def __init__(self, sent: Mapping[str, Any], settings: Settings, *, is_form: bool = False) -> None:
        self.fields = {name: value for name, value in sent.items() if value is not None}
        if is_form:
            self.fields = {name: value for name, value in self.fields.items() if value != "" or name == "prompt"}
        self.faults: list[dict[str, Any]] = []
        self._settings = settings
        self._is_form = is_form
        self._ignored: dict[str, str] = {}
        self._adjusted: dict[str, tuple[str, str]] = {}

    def inner(self, sent: Mapping[str, Any]) -> "Reading":
        """Begin to read a nested object, with what was found in the outer one."""
        reading = Reading(sent, self._settings)
        reading.faults, reading._ignored, reading._adjusted = self.faults, self._ignored, self._adjusted
        return reading

    @property
    def told(self) -> Told:
        listed = dict(list(self._ignored.items())[:_MAX_TOLD])
        return Told(listed, dict(self._adjusted))

    def refuse(self, name: str, reason: str, *, code: str = "parameter_unused") -> None:
        """Reject the request for a parameter, and look for further faults."""
        self.fields.pop(name, None)
        self.faults.append({"type": code, "loc": ("body", name), "msg": reason})

    def ignore(self, name: str, reason: str) -> None:
        """Leave a parameter out, and tell it. A value that asks for nothing (0, false, empty) is not told."""
        if _asks_for_something(self.fields.get(name)):
            self.tell_ignored(name, reason)
        self.fields.pop(name, None)

    def tell_ignored(self, name: str, reason: str) -> None:
        """Tell of a parameter, or a part of one, that was left out."""
        if self._settings.strict:
            self.refuse(name, reason)
        else:
            self._ignored[name[:MAX_NAME_CHARACTERS]] = reason

    def ignore_unknown(self, model: type[BaseModel]) -> None:
        """Leave out what the wire model does not know.

        A wrong name for a field that it has is rejected, and so is a picture or a mask that would be left out.
        """
        for name in [name for name in self.fields if name not in model.model_fields]:
            if not _asks_for_something(self.fields[name]):
                del self.fields[name]
            elif (right := meant(name, model)) is not None:
                self.refuse(name, f"{UNKNOWN_REASON}; say {right}.", code="extra_forbidden")
            elif name in _OF_ANOTHER_KIND:
                self.refuse(name, _OF_ANOTHER_KIND[name])
            else:
                few = len(self._ignored) + len(self.faults) < _MAX_TOLD
                near = similar(name, model) if few else None
                self.ignore(name, f"{UNKNOWN_REASON}; is it {near}?" if near else f"{UNKNOWN_REASON}.")

    def adjust(self, name: str, used: Any, reason: str) -> None:
        """Use another value than the one sent."""
        self._adjust(name, used, f"{_brief(self.fields.get(name))}->{_brief(used)}", reason)

    def shorten(self, name: str) -> None:
        """Cut a prompt that has too many characters."""
        prompt = self.fields.get(name)
        if self._settings.strict or not isinstance(prompt, str) or FILLER in prompt:
            return
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            change = f"{len(prompt)}->{MAX_PROMPT_CHARACTERS} characters"
            reason = f"A prompt has at most {MAX_PROMPT_CHARACTERS} characters."
            self._adjust(name, prompt[:MAX_PROMPT_CHARACTERS], change, reason)

    def limit_steps(self, name: str = "num_inference_steps") -> None:
        """Make the maximum of more denoising steps."""
        steps = self.number(name)
        most = self._settings.max_steps
        if steps is not None and steps > most:
            self.adjust(name, most, f"Pictures are made in 1 to {most} steps here.")

    def fit_strength(
        self, model: type[BaseModel], *, steps_name: str = "num_inference_steps", strength_name: str = "strength"
    ) -> None:
        """Have at least one step run: with more steps if that helps, else also with more strength.

        The wire model has the defaults of both.
        """
        most = self._settings.max_steps
        sent_steps, sent_strength = self.number(steps_name), self.number(strength_name)
        used_steps = model.model_fields[steps_name].default if sent_steps is None else sent_steps
        used_strength = model.model_fields[strength_name].default if sent_strength is None else sent_strength
        if self._settings.strict or not (1 <= used_steps <= most and 0 < used_strength <= 1):
            return  # as it is, or a fault
        if effective_steps(int(used_steps), used_strength) >= 1:
            return
        reason = "At least one step must run: int(steps * strength)."
        if used_strength < (smallest := smallest_strength(most)):
            self.adjust(strength_name, smallest, reason)
            used_strength = smallest
        needed = next(many for many in range(1, most + 1) if effective_steps(many, used_strength) >= 1)
        if sent_steps is None:
            self.fields[steps_name] = needed
        elif needed != sent_steps:
            self.adjust(steps_name, needed, reason)

    def part(self, name: str, model: type[Fields]) -> Fields | None:
        """Take a nested object out of the fields, as its wire model; None if it is missing or invalid."""
        sent = self.fields.pop(name, None)
        return None if sent is None else _check(model, sent, (name,), self.faults, self._settings.max_steps)

    def size(self, default: int | None) -> Size | None:
        """Return the size that `width` and `height` ask for, if they are sides; a missing one has the default."""
        width, height = (self.number(name) or default for name in ("width", "height"))
        if width is None or height is None or not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            return None
        return Size(int(width), int(height))

    def check(self, action: Callable[[], None]) -> None:
        """Note the fault if the action raises an InvalidRequestError."""
        try:
            action()
        except InvalidRequestError as error:
            name = () if error.param is None else (error.param,)
            self.faults.append({"type": error.code, "loc": ("body", *name), "msg": str(error)})

    def number(self, name: str) -> float | None:
        """Return a number, in a form sent as text. None if it is none: the wire model will say so."""
        sent = self.fields.get(name)
        kinds = int | float | str if self._is_form else int | float
        if isinstance(sent, bool) or not isinstance(sent, kinds) or "_" in str(sent):
            return None
        try:
            number = float(sent)
        except (ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None

    def attempt(self, model: type[Fields]) -> Fields | None:
        """Return the fields as their wire model, or note their faults."""
        return _check(model, self.fields, (), self.faults, self._settings.max_steps)

    def checked(self, model: type[Fields]) -> Fields:
        """Return the fields as their wire model.

        Raises:
            RequestValidationError: All faults.
        """
        return self.conclude(self.attempt(model))

    def conclude(self, fields: Fields | None) -> Fields:
        """Return what `attempt` returned.

        Raises:
            RequestValidationError: All faults.
        """
        if fields is None or self.faults:
            raise RequestValidationError(self.faults)
        return fields

    def _adjust(self, name: str, used: Any, change: str, reason: str) -> None:
        if self._settings.strict:
            self.refuse(name, reason)
        else:
            self._adjusted[name] = (change, reason)
        self.fields[name] = used


def _asks_for_something(value: Any) -> bool:
    return bool(value) and value not in ("0", "0.0", "false", "False")


def _brief(value: Any) -> str:
    """Return a number for a header; anything else is not repeated."""
    return f"{value:g}" if isinstance(value, int | float) else _printable(str(value)[:20])


def _printable(name: str) -> str:
    """Return a name that the client sent as a header may have it."""
    return quote(name[:MAX_NAME_CHARACTERS], safe="!#$&'*+-.^_`|~[]", errors="replace") or "(no name)"
