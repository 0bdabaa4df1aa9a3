"""webuiapi, the client of Stable Diffusion WebUI's API."""

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from report import Report, Service, encoded, main
from webuiapi import WebUIApi, WebUIApiResult


def client(service: Service) -> WebUIApi:
    api = WebUIApi(baseurl=f"{service.url}/sdapi/v1")
    api.set_auth("any", service.key)
    return api


def report(result: WebUIApiResult) -> Report:
    files = []
    for image in result.images:
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(encoded(file.getvalue()))
    return {"pictures": files, "info": result.info, "parameters": result.parameters}


def txt2img(service: Service, picture: Path) -> Report:
    """Send what the client sends by default: 20 steps, guidance 7 and the sampler Euler a."""
    return report(client(service).txt2img(prompt="a fox"))


def txt2img_with_all_parameters(service: Service, picture: Path) -> Report:
    result = client(service).txt2img(
        prompt="a fox",
        negative_prompt="blurry",
        seed=7,
        styles=[],
        sampler_name="DPM++ 2M",
        scheduler="Karras",
        batch_size=2,
        n_iter=2,
        steps=3,
        cfg_scale=1.0,
        width=256,
        height=384,
        override_settings={"CLIP_stop_at_last_layers": 2},
    )
    return report(result)


def img2img(service: Service, picture: Path) -> Report:
    return report(client(service).img2img(images=[Image.open(picture)], prompt="a fox"))


_FIELDS: dict[str, Any] = {
    "prompt": "a fox",
    "denoising_strength": 0.9,
    "seed": 7,
    "batch_size": 2,
    "steps": 3,
    "cfg_scale": 1.0,
    "width": 256,
    "height": 384,
}


def img2img_with_all_parameters(service: Service, picture: Path) -> Report:
    return report(client(service).img2img(images=[Image.open(picture)], negative_prompt="blurry", **_FIELDS))


def img2img_with_mask(service: Service, picture: Path) -> Report:
    """Send what the client sends with a mask by default: the masked part alone is drawn, at 512x512."""
    mask = Image.open(picture.with_name("white.png"))
    return report(client(service).img2img(images=[Image.open(picture)], mask_image=mask, prompt="a fox"))


def img2img_with_mask_and_all_parameters(service: Service, picture: Path) -> Report:
    result = client(service).img2img(
        images=[Image.open(picture)],
        mask_image=Image.open(picture.with_name("black.png")),
        mask_blur=12,
        inpainting_fill=2,
        inpaint_full_res=False,
        inpaint_full_res_padding=32,
        inpainting_mask_invert=1,
        **_FIELDS,
    )
    return report(result)


def refused(service: Service, picture: Path) -> Report:
    """Ask for a script, which the service does not have."""
    return report(client(service).txt2img(prompt="a fox", script_name="x/y/z plot"))


def lists(service: Service, picture: Path) -> Report:
    api = client(service)
    return {
        "models": api.util_get_model_names(),
        "samplers": api.util_get_sampler_names(),
        "schedulers": api.util_get_scheduler_names(),
        "upscalers": api.get_upscalers(),
        "vaes": api.get_sd_vae(),
        "loras": api.get_loras(),
        "embeddings": api.get_embeddings(),
        "hypernetworks": api.get_hypernetworks(),
        "face_restorers": api.get_face_restorers(),
        "styles": api.get_prompt_styles(),
        "scripts": api.get_scripts(),
        "flags": api.get_cmd_flags(),
        "memory": api.get_memory(),
    }


def options(service: Service, picture: Path) -> Report:
    """Choose the current model again, as programs do before they make pictures."""
    api = client(service)
    current = api.util_get_current_model()
    with contextlib.redirect_stdout(sys.stderr):  # the client prints
        api.util_set_model(current)
    return {"current": current, "then": api.util_get_current_model(), "options": api.get_options()}


def progress(service: Service, picture: Path) -> Report:
    api = client(service)
    api.util_wait_for_ready()
    return {"progress": api.get_progress(), "interrupt": api.interrupt(), "skip": api.skip()}


def png_info(service: Service, picture: Path) -> Report:
    """Read the parameters from a picture that the service made."""
    api = client(service)
    made = api.txt2img(prompt="a fox", seed=7)
    return {"info": api.png_info(made.image).info, "infotext": made.info["infotexts"][0]}


def told(error: RuntimeError) -> Report:
    status, text = error.args
    return {"error": text, "status": status}


main(
    txt2img,
    txt2img_with_all_parameters,
    img2img,
    img2img_with_all_parameters,
    img2img_with_mask,
    img2img_with_mask_and_all_parameters,
    refused,
    lists,
    options,
    progress,
    png_info,
    refusal=RuntimeError,
    told=told,
)
