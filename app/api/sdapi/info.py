"""The `info` and `parameters` of an answer, and the parameters in a PNG, in Stable Diffusion WebUI's form."""

import json
import re
import time
from typing import Any

from app.api.fields import Told
from app.api.sdapi.schemas import SAMPLER, SCHEDULER, PngInfo, SdRequest
from app.inference.generation import Generated

_PAIR = re.compile(r'(?:^|(?<=,))\s*+([\w()/+.-][\w ()/+.-]*+):\s*+("(?:\\.|[^\\"])++"|[^,]*+)(?:,|$)')
"""A parameter in the last line of the text, as that server reads it back. It is searched for behind commas only, and
without backtracking, so that the time grows with the text's length and no faster: any client may send one."""

_LEAST_PAIRS = 3
"""A last line with fewer is the prompt's, as in that server."""

_NEGATIVE = "\nNegative prompt:"


def used_parameters(wanted: SdRequest, made: Generated) -> dict[str, Any]:
    """Return the parameters that were used; uploads are left out, as that server does."""
    used = made.used
    parameters = {
        "prompt": used.prompt,
        "negative_prompt": "",
        "seed": made.seeds[0],
        "batch_size": wanted.batch_size,
        "n_iter": wanted.n_iter,
        "steps": used.num_inference_steps,
        "cfg_scale": 0,
        "width": used.width,
        "height": used.height,
        "sampler_name": SAMPLER,
        "scheduler": SCHEDULER,
    }
    return parameters if used.strength is None else {**parameters, "denoising_strength": used.strength}


def info_text(wanted: SdRequest, made: Generated, told: Told) -> str:
    """Return `info`: JSON as text, with that server's keys and `warnings`, `ignored` and `adjusted`."""
    used, number = made.used, len(made.seeds)
    info = {
        "prompt": used.prompt,
        "all_prompts": [used.prompt] * number,
        "negative_prompt": "",
        "all_negative_prompts": [""] * number,
        "seed": made.seeds[0],
        "all_seeds": list(made.seeds),
        "subseed": made.seeds[0],
        "all_subseeds": list(made.seeds),
        "subseed_strength": 0,
        "width": used.width,
        "height": used.height,
        "sampler_name": SAMPLER,
        "cfg_scale": 0,
        "steps": used.num_inference_steps,
        "batch_size": wanted.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": used.model,
        "sd_model_hash": "",
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": used.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": list(made.texts),
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": "",
        "warnings": told.warnings,
        "ignored": list(told.ignored),
        "adjusted": {name: change for name, (change, _) in told.adjusted.items()},
    }
    return json.dumps(info)


def png_info(text: str | None) -> PngInfo:
    """Return a picture's text `parameters`, and its pairs one by one."""
    if text is None:
        return PngInfo(info="", items={}, parameters={})
    prompt, _, last = f"\n{text}".rpartition("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _LEAST_PAIRS:
        prompt, pairs = f"\n{text}", []
    prompt, _, negative = prompt.partition(_NEGATIVE)
    prompts = {"Prompt": prompt.removeprefix("\n"), "Negative prompt": negative.strip()}
    parameters = {name: value.strip('"') for name, value in pairs}
    return PngInfo(info=text, items={"parameters": text}, parameters={**prompts, **parameters})
