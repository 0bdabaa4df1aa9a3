"""Wire models of Stable Diffusion WebUI's API, and what becomes of the parameters that its clients send.

Source: modules/api/models.py of AUTOMATIC1111/stable-diffusion-webui, and the requests of its clients, which
tests/api/fixtures names. They send some forty parameters, most of them with the value that changes nothing.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from app.api.fields import (
    GUIDANCE_REASON,
    NEGATIVE_PROMPT_REASON,
    SCHEDULER_REASON,
    Reading,
    Told,
    describe_leniency,
)
from app.api.model_names import ModelNames
from app.images.decoding import decode_image
from app.images.masks import MaskReading
from app.images.sizes import Size
from app.modes.fields import (
    MAX_IMAGES_OF_CLIENTS,
    WHOLE,
    Prompt,
    Seed,
    Side,
    Steps,
    Strength,
    Uploads,
    check_effective_steps,
    check_seed_range,
    params_of,
)
from app.modes.img2img import Img2ImgParams
from app.modes.inpaint import DEFAULT_STEPS, MAX_FEATHER, Fill, InpaintParams, read_area
from app.modes.prompt_fields import check_emphasis
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams, Lora
from app.pipelines.prompt_options import PromptOptions
from app.settings import DEFAULT_SIDE, MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, Settings

_ORIGINAL, _NOISE = 1, 2
_FILLS: Final = {0: _ORIGINAL, 3: _NOISE}
"""That server's other values, each with the nearest one: 0 starts from blurred surroundings, 3 from grey."""

SAMPLER: Final = "Euler a"
SCHEDULER: Final = "Automatic"

_SAMPLERS: Final = ("euler a", "k_euler_a", "k_euler_ancestral", "euler ancestral")
_SCHEDULERS: Final = ("automatic", "normal", "none")
_NUMBERS: Final = ("batch_size", "denoising_strength", "height", "n_iter", "seed", "steps", "width")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,11})(?:\.\d{1,12})?")

_EXTRA_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):([^<>:]*+)[^<>]*+>,?\s*+")
"""A tag in a prompt. That server loads weights for it; the model would read it as words. The pattern never tries twice:
it is applied to 64 KiB on the event loop."""

_NO_MASK: Final = (None, "", "None")
_ONE_SCHEDULE: Final = "SDXL-Turbo has one schedule."
_IGNORED: Final = {
    "negative_prompt": NEGATIVE_PROMPT_REASON,
    "enable_hr": "Pictures are made at their full size at once: ask for a larger one.",
    "restore_faces": "No model restores faces here.",
    "tiling": "SDXL-Turbo's pictures have edges.",
    "styles": "No styles are stored here. Write the style into the prompt.",
    "subseed_strength": "A picture has one seed.",
    "refiner_checkpoint": "There is one model.",
    "save_images": "Nothing is stored.",
    "include_init_images": "Uploads are not sent back.",
    "script_args": "There are no scripts here.",
    **dict.fromkeys(("cfg_scale", "distilled_cfg_scale", "image_cfg_scale"), GUIDANCE_REASON),
    "clip_skip": "All layers of the text encoders are used.",
    "resize_mode": "A picture is scaled to cover the size, and cropped about its centre.",
}
"""Parameters without effect here, with the reason."""

_REFINEMENTS: Final[Mapping[str, Sequence[str]]] = {
    "enable_hr": (
        *("denoising_strength", "hr_additional_modules", "hr_cfg", "hr_checkpoint_name", "hr_distilled_cfg"),
        *("hr_negative_prompt", "hr_prompt", "hr_resize_x", "hr_resize_y", "hr_sampler_name", "hr_scale"),
        *("hr_scheduler", "hr_second_pass_steps", "hr_upscaler"),
    ),
    "mask": (
        *("inpaint_full_res", "inpaint_full_res_padding", "inpainting_fill", "inpainting_mask_invert"),
        *("mask_blur", "mask_blur_x", "mask_blur_y", "mask_round"),
    ),
    "override_settings": ("override_settings_restore_afterwards",),
    "refiner_checkpoint": ("refiner_switch_at",),
    "save_images": ("do_not_save_grid", "do_not_save_samples"),
    "subseed_strength": ("subseed",),
}
"""Parameters that only refine another, by the other. Programs send them always, so answers mention the other alone."""

_HARMLESS: Final[Mapping[str, Sequence[Any]]] = {
    "clip_skip": (1,),
    "cfg_scale": (0, 1),
    "disable_extra_networks": (True,),
    "distilled_cfg_scale": (3.5,),
    "eta": (1,),
    "image_cfg_scale": (1, 1.5),
    "initial_noise_multiplier": (1,),
    "resize_mode": (0, 1),  # stretch, or crop: a picture is always cropped
    "s_noise": (1,),
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
}
"""Values, beside 0, false and empty, with which a parameter changes nothing."""

_OVERRIDES: Final[Mapping[str, Sequence[Any]]] = {
    "CLIP_stop_at_last_layers": (1,),
    "comma_padding_backtrack": (20,),
    "ddim_discretize": ("uniform",),
    "emphasis": ("None", "Original"),
    "enable_emphasis": (True,),
    "eta_noise_seed_delta": (),
    "forge_additional_modules": (),
    "img2img_fix_steps": (),
    "initial_noise_multiplier": (1,),
    "inpainting_mask_weight": (1,),
    "samples_format": ("png",),
    "samples_save": (True,),
    "save_images_add_number": (True,),
    "sd_hypernetwork": ("None",),
    "sd_lora": ("None",),
    "sd_vae": ("Automatic", "None"),
    "token_merging_ratio": (),
}
"""Keys of `override_settings` that programs send always, with the values, beside 0, false and empty, that change
nothing. KoboldAI Lite sends nine of them. `_has_emphasis` reads the values that switch emphasis off."""


_REFUSED: Final = {
    "latent_mask": "Send the mask in `mask`.",
    "script_name": "There are no scripts here.",
}
"""Parameters that ask for another kind of picture, with the reason."""


def _describe(schema: dict[str, Any]) -> None:
    ignored = {**_IGNORED, "sampler_name": SCHEDULER_REASON, "scheduler": _ONE_SCHEDULE}
    describe_leniency(schema, steps="steps", ignored=ignored, refused=_REFUSED)
    properties = schema["properties"]
    for name in _REFUSED:
        properties[name] = {"enum": [None, ""], "description": properties[name]["description"]}
    for name in ("width", "height", "seed"):
        for field in (properties[name], *properties[name].get("anyOf", ())):
            field.pop("multipleOf", None)
            if name == "seed":
                field.pop("minimum", None)


class Overrides(BaseModel):
    """The settings of that server that have an effect on one request here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    enable_emphasis: bool = True
    """Whether brackets and BREAK in the prompt have their meaning, or are text."""


class SdRequest(BaseModel):
    """The fields that all modes share."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, json_schema_extra=_describe)
    size_param: ClassVar[str] = "width"
    upload_params: ClassVar[Mapping[str, str]] = {"image": "init_images"}

    prompt: Annotated[
        Prompt,
        Field(
            description="What to draw. CLIP reads it in windows of 75 tokens, at most 8; what lies beyond is cut, and "
            "the answer reports it. `(word:1.3)`, `[word]` and BREAK mean what they mean in that server, unless "
            "`override_settings` has `enable_emphasis` false or `emphasis` None."
        ),
    ] = ""
    seed: Annotated[Seed | None, Field(description="Seed of the first picture; any negative number draws one.")] = None
    batch_size: Annotated[int, Field(ge=1, le=MAX_IMAGES_OF_CLIENTS, description="Pictures per iteration."), WHOLE] = 1
    n_iter: Annotated[
        int,
        Field(ge=1, le=MAX_IMAGES_OF_CLIENTS, description="Iterations; batch_size x n_iter is at most 10."),
        WHOLE,
    ] = 1
    send_images: Annotated[bool, Field(description="Whether the answer has the pictures.")] = True
    override_settings: SkipJsonSchema[Overrides] = Overrides()  # a schema would have to name what is ignored

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        check_seed_range(self.seed, self.num_images, name="batch_size * n_iter")
        check_emphasis(self.prompt, self.prompt_options.syntax)
        return self

    @property
    def prompt_options(self) -> PromptOptions:
        """That server reads prompts of any length in windows, and brackets as emphasis."""
        return PromptOptions(mode="chunked", syntax="webui" if self.override_settings.enable_emphasis else "plain")

    @property
    def num_images(self) -> int:
        return self.batch_size * self.n_iter


class SdTxt2ImgRequest(SdRequest):
    """The body of `POST /sdapi/v1/txt2img`."""

    steps: Steps = 1
    width: Side = DEFAULT_SIDE
    height: Side = DEFAULT_SIDE

    @property
    def chosen_size(self) -> Size:
        return Size(self.width, self.height)

    def to_params(self) -> list[Txt2ImgParams]:
        return params_of(self, Txt2ImgParams, num_inference_steps=self.steps, width=self.width, height=self.height)


class SdImg2ImgRequest(SdRequest):
    """The body of `POST /sdapi/v1/img2img`."""

    init_images: Annotated[
        list[str],
        Field(min_length=1, max_length=1, description="One PNG, JPEG or WebP file, in base64 or as a data: URL."),
    ]
    denoising_strength: Strength = 0.75  # as in that server
    steps: Steps = 2
    width: Annotated[Side | None, Field(description="Pixels; without both sides the picture's aspect is kept.")] = None
    height: Side | None = None

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        names = {"steps_name": "steps", "strength_name": "denoising_strength"}
        check_effective_steps(self.steps, self.denoising_strength, **names)
        return self

    @property
    def chosen_size(self) -> Size | None:
        """The output's size, if the request names one."""
        return None if self.width is None or self.height is None else Size(self.width, self.height)

    def to_params(self, uploads: Uploads, settings: Settings) -> Sequence[GenerationParams]:
        """Return one params object per picture, each starting from the upload `image`. Blocks.

        Raises:
            TurboError: The file is not a usable picture.
        """
        image = decode_image(uploads["image"](), self.chosen_size, settings)
        steps, strength = self.steps, self.denoising_strength
        return params_of(self, Img2ImgParams, num_inference_steps=steps, strength=strength, image=image)


def _describe_inpainting(schema: dict[str, Any]) -> None:
    """Describe the body with and without a mask."""
    _describe(schema)
    schema["required"].remove("mask")
    steps = schema["properties"]["steps"]
    without = SdImg2ImgRequest.model_fields["steps"].default
    steps["description"] += f" If omitted {without}, with a mask {steps.pop('default')}."


class SdInpaintRequest(SdImg2ImgRequest):
    """The body of `POST /sdapi/v1/img2img` with a mask: a part of the picture is drawn anew."""

    model_config = ConfigDict(json_schema_extra=_describe_inpainting)

    mask: Annotated[
        str, Field(description="The mask's file: white is drawn anew, or with transparency what is opaque.")
    ]
    steps: Steps = DEFAULT_STEPS
    mask_blur: Annotated[
        int, Field(ge=0, le=MAX_FEATHER // 2, description="Half of the drawn part's soft edge, in pixels."), WHOLE
    ] = 4
    inpainting_fill: Annotated[
        Literal[1, 2], Field(description="1: start from what the picture shows. 2: start from noise.")
    ] = 1
    inpaint_full_res: Annotated[
        bool, Field(description="Draw only the masked part, at full resolution, and keep the picture's own size.")
    ] = True
    inpaint_full_res_padding: Annotated[
        int, Field(ge=0, le=MAX_SIDE, description="Pixels around the masked part that are drawn with it."), WHOLE
    ] = 0
    inpainting_mask_invert: Annotated[Literal[0, 1], Field(description="1: black is drawn anew.")] = 0

    def to_params(self, uploads: Uploads, settings: Settings) -> Sequence[GenerationParams]:
        """Return one params object per picture. Blocks.

        Raises:
            TurboError: As `read_area`.
        """
        area = read_area(
            uploads,
            self.chosen_size,
            settings,
            reading=MaskReading.OPACITY,
            invert=bool(self.inpainting_mask_invert),
            feather=2 * self.mask_blur,
            padding=self.inpaint_full_res_padding if self.inpaint_full_res else None,
        )
        fill: Fill = "noise" if self.inpainting_fill == _NOISE else "original"
        steps, strength = self.steps, self.denoising_strength
        return params_of(self, InpaintParams, num_inference_steps=steps, strength=strength, area=area, fill=fill)


AnyRequest = TypeVar("AnyRequest", bound=SdRequest)


def read(
    sent: Mapping[str, Any],
    model: type[AnyRequest],
    *,
    models: ModelNames,
    settings: Settings,
    loras: Sequence[Lora],
    check_size: Callable[[Size, str], None],
) -> tuple[AnyRequest, Told]:
    """Return a request's fields, and what became of the parameters without effect here.

    Raises:
        RequestValidationError: All faults.
    """
    reading = Reading(sent, settings)
    _read_numbers(reading)
    _refuse(reading)
    if model is SdInpaintRequest:
        _read_inpainting(reading)
    _ignore(reading, model)
    _read_overrides(reading, models)
    _read_sampling(reading)
    _read_prompt(reading, loras)
    _read_sizes(reading, model)
    _read_number(reading)
    if model is not SdTxt2ImgRequest:
        reading.fit_strength(model, steps_name="steps", strength_name="denoising_strength")
    reading.ignore_unknown(model)
    if (size := reading.size(DEFAULT_SIDE if model is SdTxt2ImgRequest else None)) is not None:
        reading.check(lambda: check_size(size, "width"))
    return reading.checked(model), reading.told


def has_mask(sent: Mapping[str, Any]) -> bool:
    """Tell whether a request has a mask. Some clients send an empty text, or None as text."""
    return sent.get("mask") not in _NO_MASK


def _read_inpainting(reading: Reading) -> None:
    """Read what refines a mask. Some clients send its blur twice, by axis."""
    axes = {name: reading.fields.pop(name) for name in ("mask_blur_x", "mask_blur_y") if name in reading.fields}
    if len(axes) > 1 and len(set(map(str, axes.values()))) == 1:
        reading.fields.setdefault("mask_blur", axes["mask_blur_x"])
    for name, value in axes.items():
        if value != reading.fields.get("mask_blur", SdInpaintRequest.model_fields["mask_blur"].default):
            reading.tell_ignored(name, "The soft edge has one width, mask_blur.")
    reading.fields.pop("mask_round", None)  # grey always blends
    fill = reading.number("inpainting_fill")
    if fill in _FILLS:
        reading.adjust("inpainting_fill", _FILLS[int(fill)], "The masked part starts as it is (1), or as noise (2).")
    if (full := reading.fields.get("inpaint_full_res")) in (0, 1):
        reading.fields["inpaint_full_res"] = bool(full)
    if isinstance(invert := reading.fields.get("inpainting_mask_invert"), bool):
        reading.fields["inpainting_mask_invert"] = int(invert)


def _refuse(reading: Reading) -> None:
    """Reject what would make another kind of picture."""
    if not has_mask(reading.fields):
        reading.fields.pop("mask", None)
    for name, reason in _REFUSED.items():
        if reading.fields.pop(name, "") not in ("", "None"):
            reading.refuse(name, reason)
    scripts = reading.fields.pop("alwayson_scripts", None) or {}
    if not isinstance(scripts, Mapping):
        reading.refuse("alwayson_scripts", "It must be a JSON object.")
        return
    for name, script in scripts.items():
        if _is_on(script):
            reading.refuse(f"alwayson_scripts.{name}", "There are no extensions here, such as ControlNet.")


def _ignore(reading: Reading, model: type[SdRequest]) -> None:
    """Leave out what has no effect."""
    for name in itertools.chain.from_iterable(_REFINEMENTS.values()):
        if name not in model.model_fields:
            reading.fields.pop(name, None)
    for name, values in _HARMLESS.items():
        if reading.fields.get(name) in values:
            del reading.fields[name]
    for name, reason in _IGNORED.items():
        reading.ignore(name, reason)


def _is_on(script: Any) -> bool:
    """Tell whether an extension has something to do. Clients also send extensions and units that are switched off."""
    args = script.get("args") if isinstance(script, Mapping) else script
    if isinstance(args, Mapping):
        return bool(args) and args.get("enabled", True) is not False
    if not isinstance(args, list):
        return bool(args)
    if args[:1] == [False]:  # ADetailer's first argument says whether it is on
        return False
    return any(not isinstance(unit, Mapping) or unit.get("enabled", True) is not False for unit in args)


def _read_overrides(reading: Reading, models: ModelNames) -> None:
    overrides = reading.fields.pop("override_settings", None) or {}
    if not isinstance(overrides, Mapping):
        reading.refuse("override_settings", "It must be a JSON object.")
        return
    for key, value in overrides.items():
        name = f"override_settings.{key}"
        if key == "sd_model_checkpoint":
            _check_checkpoint(reading, name, value, models)
        elif key not in _OVERRIDES:
            reading.refuse(name, "This setting cannot be changed here.")
        elif value not in _OVERRIDES[key]:
            reading.fields[name] = value
            reading.ignore(name, "This setting has no effect here.")
    reading.fields["override_settings"] = {"enable_emphasis": _has_emphasis(overrides)}


def _has_emphasis(overrides: Mapping[str, Any]) -> bool:
    """Tell whether brackets have a meaning. Newer versions of that server have `emphasis`, older `enable_emphasis`."""
    if overrides.get("emphasis"):
        return bool(overrides["emphasis"] != "None")
    return overrides.get("enable_emphasis") is not False


def _check_checkpoint(reading: Reading, name: str, value: object, models: ModelNames) -> None:
    """Reject another model than the served one; None asks for none."""
    if value is not None and not (isinstance(value, str) and models.has(value)):
        reading.refuse(name, f"The served model is {models.served}, and no other can be loaded.")


def _read_sampling(reading: Reading) -> None:
    fields = reading.fields
    if fields.get("sampler_name"):
        fields.pop("sampler_index", None)  # the name counts, if both are there
    for name in ("sampler_name", "sampler_index"):
        if str(fields.get(name, "")).lower() in _SAMPLERS:
            del fields[name]
        reading.ignore(name, SCHEDULER_REASON)
    if str(fields.get("scheduler", "")).lower() in _SCHEDULERS:
        del fields["scheduler"]
    reading.ignore("scheduler", _ONE_SCHEDULE)
    reading.limit_steps("steps")


def _read_prompt(reading: Reading, loras: Sequence[Lora]) -> None:
    prompt = reading.fields.get("prompt")
    if isinstance(prompt, str) and (names := set(_EXTRA_NETWORK.findall(prompt))):
        fused = [str(lora) for lora in loras if lora.name in names]
        reasons = [f"Fused into the model already, with this weight: {', '.join(fused)}."] if fused else []
        if names.difference(lora.name for lora in loras):
            reasons.append("No further networks can be loaded.")
        reading.tell_ignored("lora", " ".join(reasons))
        reading.fields["prompt"] = _EXTRA_NETWORK.sub("", prompt)
    reading.shorten("prompt")


def _read_numbers(reading: Reading) -> None:
    """Take numbers that come as text, as that server does."""
    for name in _NUMBERS:
        sent = reading.fields.get(name)
        if isinstance(sent, str) and _NUMBER.fullmatch(sent.strip()):
            reading.fields[name] = json.loads(sent)


def _read_sizes(reading: Reading, model: type[SdRequest]) -> None:
    if model is not SdTxt2ImgRequest and len({"width", "height"} & reading.fields.keys()) == 1:
        for name in ("width", "height"):
            reading.ignore(name, "Send both sides; with one, the picture's aspect is kept.")
    for name in ("width", "height"):
        side = reading.number(name)
        if side is not None and MIN_SIDE <= side <= MAX_SIDE and side % SIDE_MULTIPLE:
            rounded = int(side + SIDE_MULTIPLE / 2) // SIDE_MULTIPLE * SIDE_MULTIPLE
            reading.adjust(name, rounded, f"Sides are multiples of {SIDE_MULTIPLE}.")


def _read_number(reading: Reading) -> None:
    if (seed := reading.number("seed")) is not None and seed < 0:
        del reading.fields["seed"]
    each, times = (reading.number(name) for name in ("batch_size", "n_iter"))
    pictures = (1 if each is None else each) * (1 if times is None else times)
    if pictures > MAX_IMAGES_OF_CLIENTS:
        name = "n_iter" if (times or 1) > 1 else "batch_size"
        reading.refuse(name, f"A request makes at most {MAX_IMAGES_OF_CLIENTS} pictures.", code="less_than_equal")


def read_options(sent: Mapping[str, Any], current: Mapping[str, Any], models: ModelNames, settings: Settings) -> Told:
    """Return what becomes of options that a client sets: none can be changed. Some send back all the `current` ones.

    Raises:
        RequestValidationError: The model is another than the served one.
    """
    reading = Reading(sent, settings)
    name = "sd_model_checkpoint"
    _check_checkpoint(reading, name, reading.fields.pop(name, None), models)
    for option, value in current.items():
        if reading.fields.get(option) == value:
            del reading.fields[option]
    for option in list(reading.fields):
        reading.ignore(option, "This option cannot be changed here.")
    reading.checked(_NoOptions)
    return reading.told


class _NoOptions(BaseModel):
    """A client's options when all were read: none is left."""


class PictureRequest(BaseModel):
    """The body of `POST /sdapi/v1/png-info`."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    image: Annotated[str, Field(description="A file, in base64 or as a data: URL.")]


class SdImages(BaseModel):
    """The pictures of a request."""

    images: Annotated[list[str], Field(description="PNG files in base64.")]
    parameters: Annotated[dict[str, Any], Field(description="The parameters that were used.")]
    info: Annotated[str, Field(description="JSON as text: seeds, size, texts as in the files, and `warnings`.")]


class PngInfo(BaseModel):
    """The parameters that a PNG was made with."""

    info: Annotated[str, Field(description="The text `parameters` of the file; empty if it has none.")]
    items: dict[str, str]
    parameters: dict[str, str]


class ProgressState(BaseModel):
    """The running call."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str
    job_count: Annotated[int, Field(description="Requests that are not answered yet, of all clients.")]
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int
    sampling_steps: int


class Progress(BaseModel):
    """How far the device is. It belongs to all clients."""

    progress: Annotated[float, Field(description="Of the running call, by its expected time; 0 when idle.")]
    eta_relative: Annotated[float, Field(description="Expected seconds until all requests are answered.")]
    state: ProgressState
    current_image: None = None
    textinfo: Annotated[str | None, Field(description="The queue in words.")] = None


class Interrupted(BaseModel):
    """Whether an interrupt dropped a request."""

    interrupted: bool
    detail: str


class Options(BaseModel):
    """The options that clients read."""

    sd_model_checkpoint: str
    samples_format: Literal["png"] = "png"
    sd_vae: str
    sd_checkpoint_hash: str = ""
    CLIP_stop_at_last_layers: int = 1


def options_of(models: ModelNames, vae: str | None) -> Options:
    """Return the options as they are."""
    return Options(sd_model_checkpoint=models.served, sd_vae=vae or "Automatic")


class FusedLora(BaseModel):
    """A LoRA in the model's weights. `weight` is not in that server's API."""

    name: str
    alias: str
    path: Annotated[str, Field(description="Its name again, because the path is the operator's.")]
    metadata: dict[str, str] = {}
    weight: float


class Named(BaseModel):
    """An entry of a list with names."""

    name: str


class Sampler(Named):
    """The sampler."""

    aliases: list[str]
    options: dict[str, str] = {}


class Scheduler(Named):
    """The scheduler."""

    label: str
    aliases: list[str] | None = None
    default_rho: float = -1.0
    need_inner_model: bool = False


class Checkpoint(BaseModel):
    """The served model."""

    title: str
    model_name: str
    hash: None = None
    sha256: None = None
    filename: str
    config: None = None


class Upscaler(Named):
    """An upscaler: only the one that does nothing."""

    model_name: None = None
    model_path: None = None
    model_url: None = None
    scale: float = 1.0


class Embeddings(BaseModel):
    """Textual inversions: none."""

    loaded: dict[str, Any] = {}
    skipped: dict[str, Any] = {}


class Scripts(BaseModel):
    """Scripts: none."""

    txt2img: list[str] = []
    img2img: list[str] = []


class Ram(BaseModel):
    """Bytes of the host's memory that this process may use."""

    free: int
    used: int
    total: int


class Unavailable(BaseModel):
    """A figure that is not measured."""

    error: str


class Memory(BaseModel):
    """The memory."""

    ram: Ram
    cuda: Unavailable
