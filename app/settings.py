"""The service's settings: one frozen class, filled from command-line flags and the environment."""

import difflib
import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self

import limits
from dotenv import dotenv_values
from pydantic import AfterValidator, AnyHttpUrl, ByteSize, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_log = logging.getLogger(__name__)

PREFIX = "TURBO_"

MIN_SIDE, MAX_SIDE = 64, 2048
"""Bounds of a picture's sides, in pixels."""

SIDE_MULTIPLE = 8
"""The VAE's scale factor; sides are multiples of it."""

DEFAULT_SIDE = 512
"""Default width and height of a picture, in pixels: SDXL-Turbo's best size (model card)."""

DEFAULT_MAX_STEPS, MOST_STEPS = 4, 10
"""The maximum of a request's denoising steps: by default (SDXL-Turbo's model card), and the highest setting."""

FUSED_OPERATORS = ("attention", "group_norm_silu", "geglu", "gelu", "quick_gelu", "add_layer_norm")
"""Names in TURBO_FUSED_OPERATORS."""

_ALIASES = (
    *("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2"),
    *("gpt-image-2.5-flare", "gpt-image-2.5-sunburst", "gpt-image-2.6-flare", "gpt-image-2.6-sunburst"),
    "chatgpt-image-latest",
)
"""OpenAI's models for pictures, as programs' sources name them; openai-python 3.57 has them all (`ImageModel`)."""

_ZERO_PERIODS = re.compile(r"(/|per)\s*0+(?![0-9])", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://[^/\\?#@\s*]+/?", re.IGNORECASE)
_ALIAS = re.compile(r"[!#-+\--~]{1,256}")
_SHARED = re.compile(r"\b(public|s-maxage)\b")
_SIDES = range(MIN_SIDE, MAX_SIDE + 1, SIDE_MULTIPLE)


def _default_weights_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sdxl-turbo-server"


def _expand(path: Path | None) -> Path | None:
    try:
        return path and path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error} Set a path without ~.") from error


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Parse sizes such as `512x512,768x1024` as (width, height) in pixels.

    Raises:
        ValueError: A picture cannot have one of the sizes; the text names it.
    """
    sizes = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{2,4})x(\d{2,4})\s*", word, re.ASCII)
        if match is None or not all(int(side) in _SIDES for side in match.groups()):
            raise ValueError(
                f"{word!r} is not WIDTHxHEIGHT with sides that are multiples of {SIDE_MULTIPLE} from {MIN_SIDE} to "
                f"{MAX_SIDE}"
            )
        sizes.append((int(match[1]), int(match[2])))
    return sizes


def _check_sizes(text: str) -> str:
    parse_sizes(text)
    return text


def split_list(text: str) -> list[str]:
    """Return the words of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _check_aliases(text: str) -> str:
    if not all(_ALIAS.fullmatch(word) for word in split_list(text)):
        raise ValueError(f"{text!r} is not a list of models' names such as dall-e-3,gpt-image-1, and not none")
    return text


def _check_fused_operators(text: str) -> str:
    if text not in ("auto", "off") and (unknown := set(split_list(text)) - set(FUSED_OPERATORS)):
        known = ", ".join(FUSED_OPERATORS)
        raise ValueError(f"{', '.join(sorted(unknown))}: not auto, off, or a list of {known}")
    return text


def _check_networks(text: str) -> str:
    for word in split_list(text):
        try:
            ipaddress.ip_network(word)
        except ValueError as error:
            raise ValueError(f"{word!r} is not an IP address or network: {error}") from error
    return text


def _check_rates(text: str) -> str:
    if text:
        try:
            rates = limits.parse_many(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a list of limits such as 10/second;2000/hour") from error
        if not all(rate.amount for rate in rates) or _ZERO_PERIODS.search(text):  # limits reads 0 periods as 1
            raise ValueError(f"{text!r} would reject every request: numbers must be at least 1")
    return text


def _normalize_origins(text: str) -> str:
    return ",".join(word if word == "*" else _normalize_origin(word) for word in split_list(text))


def _normalize_origin(word: str) -> str:
    """Return an origin as browsers send it: the host in lower-case ASCII, without the scheme's default port."""
    with suppress(ValueError):  # Pydantic's ValidationError is a ValueError
        if _ORIGIN.fullmatch(word):
            return str(AnyHttpUrl(word)).removesuffix("/")
    raise ValueError(f"{word!r} is not an origin such as https://app.example, and not *")


class Settings(BaseSettings):
    """The operator's choices. A command-line flag overrides the environment, which overrides the default."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    env_file: Annotated[Path | None, AfterValidator(_expand)] = None
    """File of variables, one line `NAME=VALUE` for each, such as `tune` writes. Variables that are set override it."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; the container image sets 0.0.0.0."""

    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free port."""

    model: str = Field(default="demo", min_length=1)
    """Weights to serve: `demo`, a folder in diffusers' format, a file `.safetensors`, `openmind:OWNER/NAME[@REVISION]`,
    `hf:OWNER/NAME[@REVISION]`, one file of a repository (`hf:OWNER/NAME:FILE.safetensors[@REVISION]`), or
    `fake[:SECONDS]`, which needs no model and paints patterns in a fixed time, for testing clients."""

    scheduler: Literal["model", "turbo"] = "model"
    """Scheduler: `model` is the model's own, which must be SDXL-Turbo's kind. `turbo` is SDXL-Turbo's; the model's own
    only says whether its UNet predicts noise or velocity. It is for fine-tunes of SDXL-Turbo that come with another
    scheduler. A model in a single file has none, and gets SDXL-Turbo's."""

    weights_dir: Annotated[Path, AfterValidator(_expand)] = Field(
        default_factory=_default_weights_dir, validate_default=True
    )
    """Folder that `pull` writes and `serve` loads from; `sdxl-turbo-server` in the user's cache folder if unset."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|(cuda|npu)(:\d{1,2})?)$")
    """Device: `auto` (the first available of npu, cuda, cpu), `cpu`, `cuda[:N]` or `npu[:N]`."""

    dtype: Literal["auto", "fp32", "fp16", "bf16", "int8"] = "auto"
    """Number format of the weights in memory. `auto` is fp16 on npu and cuda. On cpu it is bf16 for a model of
    SDXL-Turbo's size if the processor has AMX or AVX512-BF16, else fp32. `int8` stores the large layers in 8 bits. It
    needs a cpu with VNNI or AMX, and takes 0.6 of bf16's memory and 0.7 of its time."""

    vae_dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Number format of the VAE, chosen when it is loaded. `auto` is the format of the other weights, also int8.
    But if they are fp16 and the VAE's config says that it overflows in fp16 (SDXL-Turbo's does), `auto` is fp32."""

    allow_tf32: bool = False
    """Let an accelerator round fp32 computations to TF32 (cuda) or HF32 (npu), which is faster. By default fp32 keeps
    its full precision, also in the VAE."""

    vae: str = ""
    """VAE that replaces the model's own: a folder in diffusers' format, `openmind:OWNER/NAME[@REVISION]` or
    `hf:OWNER/NAME[@REVISION]`. TAESDXL (`hf:madebyollin/taesdxl`) decodes at a fraction of the cost into slightly
    softer pictures; an `AutoencoderKL` of SDXL works too."""

    lora: str = ""
    """LoRAs that are fused into the model when it is loaded, each with its weight (1 if omitted):
    `style.safetensors:0.8,hf:OWNER/NAME:FILE.safetensors@REVISION:0.5`. Each is a file, a folder or a repository with
    one such file, for SDXL or SDXL-Turbo, in kohya's or diffusers' format. They take no time in requests."""

    fused_operators: Annotated[str, AfterValidator(_check_fused_operators)] = "auto"
    """Operators that an npu computes as one kernel: `auto` (all that the chip has), `off`, or some of them, such as
    `attention,geglu`. Each is checked when the service starts, and not used if it is missing or computes something
    else."""

    npu_graphs: bool = False
    """Compile all networks with torch_npu's `npugraph_ex` (npu only) during warm-up, for the warm-up sizes and for 1,
    2, 4, ... up to `TURBO_MAX_BATCH` pictures at once. Other sizes run without graphs."""

    graph_cache_dir: Annotated[Path | None, AfterValidator(_expand)] = None
    """Folder where compiled npu graphs are kept, so that the next start is faster. It contains code that is run: only
    this service's user may write there. Without it every start compiles."""

    compile: Literal["off", "on"] = "off"
    """Compile all networks into CUDA graphs (cuda only) during warm-up, for the warm-up sizes and for 1, 2, 4, ... up
    to `TURBO_MAX_BATCH` pictures at once. This takes minutes at start. Other sizes run without graphs."""

    channels_last: Literal["auto", "on", "off"] = "auto"
    """Memory layout of the convolutions' pictures: channels last, or first. `auto` is last on cuda and cpu, but first
    for small UNets on a cpu, and on npu, where CANN has layouts of its own."""

    threads: int = Field(default=0, ge=0, le=1024)
    """Threads of a cpu that compute a picture; 0 leaves it to torch, which uses all cores or OMP_NUM_THREADS."""

    batching: Literal["off", "exact", "fast"] = "exact"
    """Combine waiting requests of the same mode, size, steps and strength into one device call. `exact`: only if a
    request gives the same bytes alone and in any batch. `fast`: also if pictures differ by rounding (1 of 255 levels
    on the CPU in fp32). `off`: never. `exact` and `fast` use the batch sizes that were faster in earlier calls."""

    max_batch: int = Field(default=8, ge=1, le=64)
    """Maximum number of pictures in a device call that combines several requests."""

    prompt_cache_bytes: ByteSize = Field(default=ByteSize(64 * 1024 * 1024), ge=0)
    """Bytes of prompt embeddings cached on the device; a repeated prompt is not encoded again. SDXL-Turbo's embeddings
    take about 0.3 MB each in fp16. 0 disables the cache."""

    warm_up_sizes: Annotated[str, AfterValidator(_check_sizes)] = "512x512"
    """Sizes (width x height) at which each mode makes a picture before the port opens, such as `512x512,768x1024`."""

    max_queue: int = Field(default=32, ge=0, le=10_000)
    """Maximum number of requests that wait for the device; further requests get 429."""

    deadline_s: float = Field(default=60, gt=0, le=3600)
    """Seconds a request may take, including the wait in the queue; then the response is 504. That is for one picture
    like the first warm-up's: more pictures, pixels or steps add the seconds that they are expected to take, up to ten
    times as much in all. A request that this device cannot finish in its time is rejected at once."""

    drain_s: float = Field(default=60, ge=0, le=3600)
    """Seconds that accepted requests have to finish after SIGTERM."""

    hang_limit_s: float = Field(default=120, gt=0, le=3600)
    """Seconds after which a device call for one picture of the first warm-up size counts as hung: liveness and
    readiness fail, all waiting requests get 503, and the process ends. The limit grows in proportion to pixels, steps
    and pictures, and is at least 8 times the expected time of the call. The first call at a new size may compile: allow
    for that."""

    idle_check_s: float = Field(default=30, gt=0, le=3600)
    """Seconds of idleness after which the device must compute a known value, so that a failed device is noticed."""

    max_pixels: int = Field(default=2_097_152, ge=MIN_SIDE**2, le=MAX_SIDE**2)
    """Maximum pixels (width x height) that a request may ask for. 1792x1024, the largest size that many clients offer,
    has 1835008. An inpainted picture without a size keeps its own."""

    max_steps: int = Field(default=DEFAULT_MAX_STEPS, ge=DEFAULT_MAX_STEPS, le=MOST_STEPS)
    """Maximum number of denoising steps of a request. SDXL-Turbo makes its pictures in 1 to 4; some checkpoints made
    from it want up to 8."""

    max_upload_pixels: int = Field(default=16_777_216, ge=1, le=178_956_970)
    """Maximum pixels of an uploaded picture, read from its header before decoding. WebP and progressive JPEG take more
    memory to decode, so their limits are lower: about half and two thirds."""

    max_body_bytes: ByteSize = Field(default=ByteSize(32 * 1024 * 1024), ge=1024)
    """Maximum bytes of a request body; units such as `32MiB` are accepted."""

    max_connections: int = Field(default=4096, ge=16, le=1_000_000)
    """Maximum number of open connections. At the limit, the connection whose client has stalled longest is closed;
    requests that have arrived are never dropped for it."""

    header_timeout_s: float = Field(default=10, gt=0, le=3600)
    """Seconds that a request's header may take to arrive; then the connection is closed."""

    body_timeout_s: float = Field(default=60, gt=0, le=3600)
    """Seconds that a request's body may take to arrive; then the response is 408."""

    trusted_proxies: Annotated[str, AfterValidator(_check_networks)] = ""
    """Addresses and networks of proxies, such as `10.0.0.0/8,192.168.1.7`, whose `X-Forwarded-For` gives the client's
    address. The header is ignored from all other addresses."""

    api_keys_file: Annotated[Path | None, AfterValidator(_expand)] = None
    """File of the API keys, one line `NAME: KEY` for each; reloaded when it changes. Without it no key is required.
    Clients send `Authorization: Bearer KEY`, `X-API-Key: KEY`, or KEY as the password of Basic authentication; the name
    is logged."""

    rate_limit: Annotated[str, AfterValidator(_check_rates)] = ""
    """How often one client may request pictures, such as `10/second;2000/hour`; requests above the limit get 429. A
    client is an API key if keys are set, else an address (the first 64 bits of an IPv6 address). Empty means no
    limit."""

    url_cache_control: str = Field(default="", max_length=200, pattern=r"^([!-~]([ -~]*[!-~])?)?$")
    """`Cache-Control` of pictures by URL (`GET /txt2img`). Empty is `public, max-age=86400`, a day, or with API keys
    `no-store`, because a shared cache would give a picture to clients without a key. `no-cache` makes caches ask each
    time whether their copy is still right, which takes no place in the queue."""

    url_embedding: bool = False
    """Let pages of other sites show pictures by URL, as `<img>`. By default only this service's own pages may, those of
    `TURBO_CORS_ORIGINS`, and people who follow a link."""

    url_rate_limit: Annotated[str, AfterValidator(_check_rates)] = ""
    """How often one client may have pictures drawn by URL, as `TURBO_RATE_LIMIT`, which applies if this is empty. What
    a cache answers does not count, nor HEAD or a 304."""

    cors_origins: Annotated[str, AfterValidator(_normalize_origins)] = ""
    """Origins whose pages may send requests, such as `https://app.example,http://localhost:3000`, or `*` for any.
    Requests from pages of other sites are rejected."""

    strict: bool = False
    """Reject parameters without effect also on the routes for other programs' clients (OpenAI's, Hugging Face's, Stable
    Diffusion WebUI's), which otherwise ignore them and name them in the answer."""

    model_aliases: Annotated[str, AfterValidator(_check_aliases)] = ",".join(_ALIASES)
    """Names of other models that clients may send for the served one, because programs have them built in; `none` for
    none. The served model's own name always works, and its last part."""

    sdapi: bool = True
    """Serve Stable Diffusion WebUI's API at `/sdapi/v1`."""

    mcp: bool = True
    """Serve tools for agents at `/mcp` (Model Context Protocol), if the extra `mcp` is installed."""

    metrics: Literal["open", "key", "off"] = "open"
    """Access to `/metrics`: `open` for everybody, `key` with an API key only, or `off`."""

    docs: bool = True
    """Serve the documentation pages and `/openapi.json`."""

    playground: bool = True
    """Serve the playground at `/`, where the picture changes as you type; otherwise `/` leads to the documentation."""

    image_metadata: bool = True
    """Write prompt, seed and the other parameters into each picture: as text in a PNG, else as an EXIF comment."""

    ai_label: bool = True
    """Label each picture as made by AI, in XMP: IPTC's Digital Source Type `trainedAlgorithmicMedia`, or after
    inpainting `compositeWithTrainedAlgorithmicMedia`."""

    aigc_producer: str = Field(default="", max_length=200, pattern=r"^[!#-\[\]-~]*$")
    """Name or code of the service's provider. If set, each picture carries the implicit label of China's GB 45438-2025,
    in XMP. ASCII without spaces, quotation marks and backslashes, as that standard requires."""

    watermark: bool = False
    """Embed Stability AI's invisible watermark in the pixels of each picture of 256x256 or more. Requires the extra
    `watermark`. PNG keeps the watermark, WebP often does, JPEG does not."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """Format of log lines: `json`, or `console` for people; `auto` is console on a terminal, else json."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""

    log_prompts: bool = False
    """Log prompts. Off by default: prompts can be personal."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.metrics == "key" and self.api_keys_file is None:
            raise ValueError("TURBO_METRICS=key requires TURBO_API_KEYS_FILE.")
        chosen = self.url_cache_control.lower()
        not_shared = not chosen or {"private", "no-store"} & {*split_list(chosen)}
        if self.api_keys_file is not None and (_SHARED.search(chosen) or not not_shared):
            raise ValueError(
                f"TURBO_URL_CACHE_CONTROL={self.url_cache_control} lets shared caches answer clients without a key, "
                "and TURBO_API_KEYS_FILE is set. Add private, or use no-store."
            )
        if self.max_pixels < DEFAULT_SIDE**2:
            raise ValueError(
                f"TURBO_MAX_PIXELS={self.max_pixels} is too small for {DEFAULT_SIDE}x{DEFAULT_SIDE}, the default size "
                f"of requests: set at least {DEFAULT_SIDE**2}."
            )
        for width, height in parse_sizes(self.warm_up_sizes):
            if width * height > self.max_pixels:
                raise ValueError(
                    f"TURBO_WARM_UP_SIZES has {width}x{height}, which exceeds TURBO_MAX_PIXELS={self.max_pixels}."
                )
        return self


def read_env_file(path: Path) -> None:
    """Set the environment variables in a file that are not set, or are empty. A missing file sets none.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not text.
    """
    if not path.is_file():
        return
    given = {name.upper() for name, value in os.environ.items() if value}  # settings ignore the case
    for name, value in dotenv_values(path, interpolate=False).items():
        if value and name.upper() not in given:
            os.environ[name] = value


def unknown_variables(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """List the `TURBO_` variables that are not settings, each with the most similar setting's variable, if any."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    unknown = sorted(name for name in environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    matches = [difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.75) for name in unknown]
    return [(name, near[0] if near else None) for name, near in zip(unknown, matches, strict=True)]


def warn_of_unknown_variables(environ: Mapping[str, str]) -> None:
    """Log a warning for each `TURBO_` variable that is not a setting: misspelt, or from another version.

    Also log one if the file of `TURBO_ENV_FILE` is missing: it may not have been written yet.
    """
    if path := environ.get(f"{PREFIX}ENV_FILE"):
        if Path(path).expanduser().is_file():
            _log.info("settings are read from %s", path)
        else:
            _log.warning("%sENV_FILE=%s: there is no such file; `tune` writes one", PREFIX, path)
    for variable, near in unknown_variables(environ):
        _log.warning("%s is not a setting%s", variable, f"; did you mean {near}?" if near else "")
