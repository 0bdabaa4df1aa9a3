"""The service's settings: one frozen class, read from the environment and from the command line."""

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
from pydantic import AfterValidator, AnyHttpUrl, ByteSize, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_log = logging.getLogger(__name__)

PREFIX = "TURBO_"

MIN_SIDE, MAX_SIDE = 64, 2048
"""Bounds of a picture's sides in pixels."""

SIDE_MULTIPLE = 8
"""Sides are multiples of the VAE's scale factor."""

DEFAULT_SIDE = 512
"""Width and height in pixels of a picture for which a request names none: SDXL-Turbo's best (model card)."""

_ZERO_PERIODS = re.compile(r"(/|per)\s*0+(?![0-9])", re.IGNORECASE)

_ORIGIN = re.compile(r"https?://[^/\\?#@\s*]+/?", re.IGNORECASE)

_SIDES = range(MIN_SIDE, MAX_SIDE + 1, SIDE_MULTIPLE)


def _default_weights_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sdxl-turbo-server"


def _expand(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error} Set it to a folder.") from error


def _expand_if_set(path: Path | None) -> Path | None:
    return path and _expand(path)


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Read sizes such as `512x512,768x1024` as (width, height) in pixels.

    Raises:
        ValueError: One is no size that a picture can have; the text says which.
    """
    sizes = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{2,4})x(\d{2,4})\s*", word, re.ASCII)
        if match is None or not all(int(side) in _SIDES for side in match.groups()):
            raise ValueError(
                f"{word!r} is no WIDTHxHEIGHT with sides that are multiples of {SIDE_MULTIPLE} from {MIN_SIDE} to "
                f"{MAX_SIDE}"
            )
        sizes.append((int(match[1]), int(match[2])))
    return sizes


def _check_sizes(text: str) -> str:
    parse_sizes(text)
    return text


def split_list(text: str) -> list[str]:
    """Return the words of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _check_networks(text: str) -> str:
    for word in split_list(text):
        try:
            ipaddress.ip_network(word)
        except ValueError as error:
            raise ValueError(f"{word!r} is no address and no network: {error}") from error
    return text


def _check_rates(text: str) -> str:
    if text:
        try:
            rates = limits.parse_many(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is no list of limits such as 10/second;2000/hour") from error
        if not all(rate.amount for rate in rates) or _ZERO_PERIODS.search(text):  # limits reads 0 periods as one
            raise ValueError(f"{text!r} would let nobody ask: numbers must be at least 1")
    return text


def _as_browsers_write_them(origins: str) -> str:
    """Return origins as browsers send them: hosts in lower case and in ASCII, and no port that is the scheme's own."""
    return ",".join(word if word == "*" else _origin(word) for word in split_list(origins))


def _origin(word: str) -> str:
    with suppress(ValueError):  # a Pydantic error is one
        if _ORIGIN.fullmatch(word):
            return str(AnyHttpUrl(word)).removesuffix("/")
    raise ValueError(f"{word!r} is no origin, such as https://app.example, and not *")


class Settings(BaseSettings):
    """What an operator can choose. A command-line flag beats the environment, the environment beats the default."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; the container image sets 0.0.0.0."""

    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""

    model: str = Field(default="demo", min_length=1)
    """Weights to serve: `demo`, a folder, `openmind:OWNER/NAME[@REVISION]`, `hf:OWNER/NAME[@REVISION]`, or
    `fake[:SECONDS]`, which has no model and paints patterns in a fixed time, for testing clients."""

    weights_dir: Annotated[Path, AfterValidator(_expand)] = Field(
        default_factory=_default_weights_dir, validate_default=True
    )
    """Folder that `pull` writes and `serve` loads from; `sdxl-turbo-server` in the user's cache folder if unset."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|(cuda|npu)(:\d{1,2})?)$")
    """Device: `auto` (the first of npu, cuda, cpu that is there), `cpu`, `cuda[:N]` or `npu[:N]`."""

    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Number format of the weights in memory; `auto` is fp16 on npu and cuda, fp32 on cpu."""

    vae_dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Number format of the VAE, settled when it is loaded; `auto` is that of the other weights, but fp32 where that is
    fp16 and the VAE's config says that it overflows (SDXL-Turbo's does)."""

    allow_tf32: bool = False
    """Let an accelerator round what is computed in fp32: to TF32 (cuda) or HF32 (npu), which is faster. Without it fp32
    is fp32, for the VAE too."""

    vae: Annotated[Path | None, AfterValidator(_expand_if_set)] = None
    """Folder of a VAE to use instead of the model's own, in diffusers' format: TAESDXL (`AutoencoderTiny`), which
    decodes at a small part of the cost and a little softer, or another `AutoencoderKL` of SDXL."""

    attention: Literal["sdpa", "npu_flash"] = "sdpa"
    """Attention: `sdpa` is torch's own choice of kernel, `npu_flash` diffusers' processor for npu in fp16 or bf16."""

    npu_graphs: bool = False
    """Compile the UNet with torch_npu's `npugraph_ex` (npu only), at the warm-up sizes; others run without graphs."""

    compile: Literal["off", "on"] = "off"
    """Compile all networks into CUDA graphs (cuda only) while warming up, at the warm-up sizes and for 1, 2, 4, ... up
    to `TURBO_MAX_BATCH` pictures at once: minutes at start. Other sizes run without."""

    batching: Literal["off", "exact", "fast"] = "exact"
    """Serve requests that wait and ask for the same mode, size, steps and strength by one call: `exact` only where the
    same request gives the same bytes alone and in any company, `fast` wherever that gains anything, where pictures may
    differ by rounding (1 of 255 levels on the CPU), `off` never."""

    max_batch: int = Field(default=8, ge=1, le=64)
    """Pictures of one call that serves several requests, at most."""

    prompt_cache_bytes: ByteSize = Field(default=ByteSize(64 * 1024 * 1024), ge=0)
    """Bytes of prompt embeddings kept on the device, so that a prompt that comes again is not encoded again;
    SDXL-Turbo's take about 0.3 MB each in fp16. 0 keeps none."""

    warm_up_sizes: Annotated[str, AfterValidator(_check_sizes)] = "512x512"
    """Sizes at which each mode makes a picture before the port opens, such as `512x512,768x1024`: width x height."""

    max_queue: int = Field(default=32, ge=0, le=10_000)
    """Requests that may wait for the device; the next is answered 429."""

    deadline_s: float = Field(default=60, gt=0, le=3600)
    """Seconds a request may take, waiting included; past it the answer is 504. A request that this device cannot do in
    that time is refused at once."""

    drain_s: float = Field(default=60, ge=0, le=3600)
    """Seconds that accepted requests have to finish after SIGTERM."""

    hang_limit_s: float = Field(default=120, gt=0, le=3600)
    """Seconds after which a device call for one picture of the first warm-up size counts as hung: liveness and
    readiness fail, everybody who waits gets 503, and the process ends. A call for more pixels, steps or pictures has as
    much more time, and each has at least 8 times what it is expected to take. A first call at a new size may compile:
    leave it the time."""

    idle_check_s: float = Field(default=30, gt=0, le=3600)
    """Seconds of idleness after which the device is made to compute a known value, so that its death is noticed."""

    max_pixels: int = Field(default=1_048_576, ge=MIN_SIDE**2, le=MAX_SIDE**2)
    """Pixels (width x height) that an output picture may have."""

    max_upload_pixels: int = Field(default=16_777_216, ge=1, le=178_956_970)
    """Pixels that an uploaded picture may have, read from its header before it is decoded. A WebP or a progressive JPEG
    takes more memory to read and may have fewer: about half and two thirds."""

    max_body_bytes: ByteSize = Field(default=ByteSize(32 * 1024 * 1024), ge=1024)
    """Bytes that a request body may have; units such as `32MiB` are understood."""

    max_connections: int = Field(default=4096, ge=16, le=1_000_000)
    """Connections that are open at once. For one more, that one is closed whose client has kept the service waiting
    longest; requests that have arrived are never given up for it."""

    header_timeout_s: float = Field(default=10, gt=0, le=3600)
    """Seconds that a request's header may take to arrive; then its connection is closed."""

    body_timeout_s: float = Field(default=60, gt=0, le=3600)
    """Seconds that a request's body may take to arrive; past it the answer is 408."""

    trusted_proxies: Annotated[str, AfterValidator(_check_networks)] = ""
    """Addresses and networks of proxies, such as `10.0.0.0/8,192.168.1.7`, whose `X-Forwarded-For` tells the client's
    address. From all others it counts for nothing."""

    api_keys_file: Annotated[Path | None, AfterValidator(_expand_if_set)] = None
    """File of the API keys that let clients in, a line `NAME: KEY` for each; read again when it changes. Without it
    everybody is let in. Clients send `Authorization: Bearer KEY` or `X-API-Key: KEY`; the name is logged."""

    rate_limit: Annotated[str, AfterValidator(_check_rates)] = ""
    """How often one client may ask for pictures, such as `10/second;2000/hour`; past it the answer is 429. A client is
    an API key, where keys are set, else an address (of IPv6 the first 64 bits). Empty for no limit."""

    cors_origins: Annotated[str, AfterValidator(_as_browsers_write_them)] = ""
    """Origins whose pages may ask, such as `https://app.example,http://localhost:3000`, or `*` for any. Pages of other
    sites are refused."""

    metrics: Literal["open", "key", "off"] = "open"
    """Whether `/metrics` is there: `open` for everybody, with an API `key` alone, or `off`."""

    docs: bool = True
    """Whether the documentation pages and `/openapi.json` are there."""

    playground: bool = True
    """Whether `/` is the playground, where a picture follows what one types; else it leads to the documentation."""

    image_metadata: bool = True
    """Write prompt, seed and the other parameters into each picture: into a PNG as text, else as EXIF's comment."""

    ai_label: bool = True
    """Label each picture as made by AI: IPTC's Digital Source Type `trainedAlgorithmicMedia`, in XMP."""

    aigc_producer: str = Field(default="", max_length=200, pattern=r"^[!#-\[\]-~]*$")
    """Name or code of who provides the service. With it each picture carries the implicit label of China's GB
    45438-2025, in XMP. ASCII without spaces, quotation marks and backslashes, as that standard has it."""

    watermark: bool = False
    """Work Stability AI's invisible watermark into the pixels of each picture of 256x256 or more. Takes the extra
    `watermark`. PNG keeps it, WebP often does, JPEG does not."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """Log lines as `json` or for reading (`console`); `auto` is console on a terminal, else json."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""

    log_prompts: bool = False
    """Log prompts. Off by default: prompts can be personal."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.metrics == "key" and self.api_keys_file is None:
            raise ValueError("TURBO_METRICS=key takes TURBO_API_KEYS_FILE.")
        if self.max_pixels < DEFAULT_SIDE**2:
            raise ValueError(
                f"TURBO_MAX_PIXELS={self.max_pixels} is too small for {DEFAULT_SIDE}x{DEFAULT_SIDE}, the size of "
                f"requests that name none: set at least {DEFAULT_SIDE**2}."
            )
        for width, height in parse_sizes(self.warm_up_sizes):
            if width * height > self.max_pixels:
                raise ValueError(
                    f"TURBO_WARM_UP_SIZES has {width}x{height}, and TURBO_MAX_PIXELS={self.max_pixels} allows no "
                    "picture of that size."
                )
        return self


def unknown_variables(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """List the `TURBO_` variables that no setting reads, each with the nearest setting's variable, if one is near."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    unknown = sorted(name for name in environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    return [
        (name, next(iter(difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.75)), None)) for name in unknown
    ]


def warn_of_unknown_variables(environ: Mapping[str, str]) -> None:
    """Log a warning for each `TURBO_` variable that no setting reads: it is misspelt, or of another version."""
    for variable, near in unknown_variables(environ):
        _log.warning("%s is no setting%s", variable, f"; did you mean {near}?" if near else "")
