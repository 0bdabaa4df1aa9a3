"""webuiapi, the Python client of Stable Diffusion WebUI's API."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.own_routes import WRONG_KEY, Service
from tests.clients.programs import Report, drawn, run_python

Ask = Callable[[str], Report]


@pytest.fixture
def ask(service: Service, picture: Path) -> Ask:
    return lambda case: run_python("webui", case, service, picture)


def test_a_prompt_becomes_a_picture_with_the_clients_defaults(ask: Ask, service: Service) -> None:
    report = ask("txt2img")
    info = report["info"]
    assert drawn(report) == [service.from_text(info["seed"], num_inference_steps=4)]
    assert info["prompt"] == "a fox"
    assert info["all_seeds"] == [info["seed"]]
    assert info["steps"] == 4
    assert len(info["infotexts"]) == 1


def test_several_batches_are_several_pictures(ask: Ask, service: Service) -> None:
    report = ask("txt2img_with_all_parameters")
    fields = {"width": 256, "height": 384, "num_inference_steps": 3}
    assert drawn(report) == [service.from_text(seed, **fields) for seed in (7, 8, 9, 10)]
    assert report["info"]["all_seeds"] == [7, 8, 9, 10]
    assert report["info"]["steps"] == 3


def test_a_picture_becomes_a_picture_with_the_clients_defaults(ask: Ask, service: Service, picture: Path) -> None:
    report = ask("img2img")
    info = report["info"]
    fields = {"width": 512, "height": 512, "num_inference_steps": 4, "strength": 0.75}
    assert drawn(report) == [service.from_picture(picture, info["seed"], **fields)]
    assert info["denoising_strength"] == 0.75


def test_a_picture_becomes_pictures_of_a_given_size(ask: Ask, service: Service, picture: Path) -> None:
    report = ask("img2img_with_all_parameters")
    fields = {"width": 256, "height": 384, "num_inference_steps": 3, "strength": 0.9}
    assert drawn(report) == [service.from_picture(picture, seed, **fields) for seed in (7, 8)]
    assert report["info"]["all_seeds"] == [7, 8]


def test_a_mask_draws_its_part_with_the_clients_defaults(ask: Ask, service: Service, picture: Path) -> None:
    report = ask("img2img_with_mask")
    (drawing,), info = drawn(report), report["info"]
    assert drawing.size == (320, 192)
    fields = {"width": 512, "height": 512, "num_inference_steps": 4, "strength": 0.75, "padding": 0, "feather": 8}
    assert drawing == service.from_mask(picture, info["seed"], **fields)
    assert info["adjusted"]["inpainting_fill"] == "0->1"


def test_a_mask_is_used_with_all_its_parameters(ask: Ask, service: Service, picture: Path) -> None:
    report = ask("img2img_with_mask_and_all_parameters")
    fields = {"width": 256, "height": 384, "num_inference_steps": 3, "strength": 0.9, "feather": 24, "fill": "noise"}
    assert drawn(report) == [service.from_mask(picture, seed, **fields) for seed in (7, 8)]
    assert report["info"]["all_seeds"] == [7, 8]


def test_a_script_is_refused_with_the_reason(ask: Ask) -> None:
    report = ask("refused")
    assert report["status"] == 422
    assert "script_name: There are no scripts here." in report["error"]


def test_a_wrong_key_is_refused_with_the_reason(with_wrong_key: Service, picture: Path) -> None:
    report = run_python("webui", "txt2img", with_wrong_key, picture)
    assert report["status"] == 401
    assert WRONG_KEY in report["error"]


def test_programs_can_list_what_the_service_has(ask: Ask) -> None:
    report = ask("lists")
    assert len(report["models"]) == 1
    assert "Euler a" in report["samplers"]
    assert report["schedulers"]
    for name in ("upscalers", "vaes", "loras", "hypernetworks", "face_restorers", "styles"):
        assert isinstance(report[name], list), name
    for name in ("embeddings", "scripts", "flags", "memory"):
        assert isinstance(report[name], dict), name
    assert set(report["scripts"]) == {"txt2img", "img2img"}


def test_programs_can_choose_the_current_model(ask: Ask) -> None:
    report = ask("options")
    assert report["current"] == report["then"] == report["options"]["sd_model_checkpoint"]


def test_progress_is_idle_and_interrupting_nothing_is_no_error(ask: Ask) -> None:
    report = ask("progress")
    assert report["progress"]["progress"] == 0
    assert report["progress"]["state"]["job_count"] == 0
    assert isinstance(report["interrupt"], dict)


def test_the_parameters_of_a_picture_can_be_read_from_its_file(ask: Ask) -> None:
    report = ask("png_info")
    assert report["info"] == report["infotext"]
    assert "Seed: 7" in report["info"]
