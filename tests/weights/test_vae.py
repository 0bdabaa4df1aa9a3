"""A VAE from a hub on loopback: pulled, verified and served with the model."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from diffusers import AutoencoderKL
from PIL import Image

from app.errors import WeightsError
from app.main import create_app
from app.settings import Settings
from app.weights.layout import VAE
from app.weights.source import HubSource
from app.weights.store import locate
from tests.conftest import StartServer, opened, serving, wait_until
from tests.weights.conftest import NO_NETWORK, TOKEN, Pull, StartPull, only_hugging_face, only_openmind
from tests.weights.local_hub import COMMIT, REPOSITORY, Fault, LocalHub

NAME = "madebyollin/taesdxl"
CONFIG = f"{NAME}/config.json"
WEIGHTS = f"{NAME}/diffusion_pytorch_model.safetensors"
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
# The repository's other files: https://huggingface.co/madebyollin/taesdxl/commit/b581b405a4be617b15c80368c62b65c2fea5495d
OTHERS = ("README.md", "diffusion_pytorch_model.bin", "taesdxl_decoder.safetensors", "taesdxl_encoder.safetensors")


@pytest.fixture
def vae(hub: LocalHub, source: HubSource, tiny_vae: Path, tmp_path: Path) -> HubSource:
    """A repository like TAESDXL's on the hub."""
    folder = shutil.copytree(tiny_vae, tmp_path / "taesdxl")
    for name in OTHERS:
        (folder / name).write_text(f"{name} is not wanted")
    hub.folders[NAME] = folder
    return HubSource(source.hub, NAME)


@pytest.fixture
def pull_both(pull: StartPull, vae: HubSource) -> Callable[..., Pull]:
    def start(**options: str) -> Pull:
        return pull(**{"TURBO_VAE": f"{vae.hub}:{NAME}"} | options)

    return start


def test_one_pull_brings_the_model_and_the_vae_and_records_both(
    hub: LocalHub, pull_both: StartPull, vae: HubSource, weights: Path, tiny_vae: Path
) -> None:
    pull_both().succeeds()
    assert {path for path in hub.downloads if path.startswith(NAME)} == {CONFIG, WEIGHTS}
    assert set(hub.downloads.values()) == {1}
    record = json.loads((weights / f"vae--{vae.hub}--madebyollin--taesdxl--main.json").read_text())
    data = (tiny_vae / "diffusion_pytorch_model.safetensors").read_bytes()
    assert record["files"].keys() == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert record["files"]["diffusion_pytorch_model.safetensors"] == {
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    locate(HubSource(vae.hub, REPOSITORY), weights)
    hub.stop()
    pull_both(prelude=NO_NETWORK).succeeds()


def test_a_service_without_the_hub_decodes_with_the_pulled_vae_and_names_it(
    pull_both: StartPull, vae: HubSource, weights: Path, tiny_vae: Path, start_server: StartServer
) -> None:
    pull_both().succeeds()
    settings = {"device": "cpu", "warm_up_sizes": "64x64", "weights_dir": weights}
    model = f"{vae.hub}:{REPOSITORY}"
    prelude = "import socket; socket.socket.connect = socket.socket.connect_ex = None"
    server = start_server(warm=True, prelude=prelude, model=model, vae=f"{vae.hub}:{NAME}", **settings)
    url = server.wait_until_started()
    assert f"loaded {REPOSITORY} with the VAE {NAME} on cpu" in server.log
    made = picture(url)
    assert made.info["parameters"].endswith(f"Model: {REPOSITORY}, VAE: {NAME}")
    assert httpx.get(f"{url}/healthz/ready").json()["vae"] == NAME
    for path in ("/healthz/ready", "/metrics", "/v1/models"):
        assert str(weights) not in httpx.get(f"{url}{path}").raise_for_status().text
    for folder in (str(tiny_vae), ""):
        own = Settings.model_validate({**settings, "model": model, "vae": folder})
        with serving(create_app(own)) as other:
            assert (picture(other).tobytes() == made.tobytes()) == bool(folder)


def picture(url: str) -> Image.Image:
    order = {"prompt": "a cat", "seed": 1, "width": 64, "height": 64}
    return opened(httpx.post(f"{url}/txt2img", json=order, timeout=60).raise_for_status().content)


@only_hugging_face
def test_of_a_vae_with_an_fp16_variant_only_that_is_pulled(
    hub: LocalHub, pull_both: StartPull, vae: HubSource, weights: Path, tiny_folder: Path
) -> None:
    kl = AutoencoderKL.from_pretrained(tiny_folder / "vae", variant="fp16")
    for variant in (None, "fp16"):
        kl.save_pretrained(hub.folders[NAME], variant=variant)
    pull_both(TURBO_MODEL="demo").succeeds()
    assert hub.downloads.keys() == {CONFIG, f"{NAME}/diffusion_pytorch_model.fp16.safetensors"}
    assert locate(vae, weights, VAE).name == COMMIT


def test_a_killed_pull_goes_on_at_the_file_where_it_stopped(
    hub: LocalHub, pull_both: StartPull, source: HubSource, vae: HubSource, weights: Path
) -> None:
    hub.faults = [Fault("hold", at=WEIGHTS, times=1), Fault("hold", at=UNET, times=1)]
    for at in (WEIGHTS, UNET):
        killed = pull_both()
        wait_until(lambda at=at: hub.sent_bytes[at])  # type: ignore[misc] # mypy does not infer a default's type
        killed.process.send_signal(signal.SIGKILL)
        assert killed.process.wait() == -signal.SIGKILL
        if at == WEIGHTS:
            with pytest.raises(WeightsError, match="Run `python -m app pull`"):
                locate(vae, weights, VAE)
    pull_both().succeeds()
    assert (hub.downloads[CONFIG], hub.downloads[WEIGHTS], hub.downloads[UNET]) == (1, 2, 2)
    locate(vae, weights, VAE)
    locate(source, weights)


@only_hugging_face
@pytest.mark.parametrize("fault", ["is damaged: its SHA-256", "is missing"])
def test_a_harmed_vae_ends_the_start_with_the_file_s_name_and_a_pull_mends_it(
    hub: LocalHub, pull_both: StartPull, weights: Path, start_server: StartServer, fault: str
) -> None:
    vae = HubSource("hf", NAME)
    pull_both(TURBO_MODEL="demo").succeeds()
    path = (locate(vae, weights, VAE) / "diffusion_pytorch_model.safetensors").resolve()
    data = path.read_bytes()
    if "damaged" in fault:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.unlink()
    server = start_server(warm=True, vae=f"hf:{NAME}", weights_dir=weights)
    assert server.wait() == 3
    reasons = [line for line in server.log.splitlines() if "cannot start" in line]
    assert len(reasons) == 1
    assert f"diffusion_pytorch_model.safetensors {fault}" in reasons[0]
    assert "Run `python -m app pull`" in reasons[0]
    hub.downloads.clear()
    pull_both(TURBO_MODEL="demo").succeeds()
    assert hub.downloads == {WEIGHTS: 1}
    locate(vae, weights, VAE)


def changed(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@only_hugging_face
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), "does not have the files that TURBO_VAE needs: config.json"),
        (
            lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(),
            "TURBO_VAE needs: config.json and diffusion_pytorch_model.safetensors (or its fp16 variant) in its top",
        ),
        (
            lambda folder: changed(folder, _class_name="UNet2DConditionModel"),
            "config.json is of class UNet2DConditionModel. TURBO_VAE needs AutoencoderKL or AutoencoderTiny.",
        ),
        (
            lambda folder: changed(folder, latent_channels=16),
            "config.json has 16 latent channels, and SDXL's VAE has 4.",
        ),
    ],
    ids=["no config", "pickles only", "a UNet", "another model's"],
)
def test_a_repository_without_a_usable_vae_is_a_clear_error_before_any_weights_are_pulled(
    hub: LocalHub, pull_both: StartPull, vae: HubSource, harm: Callable[[Path], None], reason: str
) -> None:
    harm(hub.folders[vae.repo_id])
    assert reason in pull_both().fails()
    assert hub.downloads.keys() <= {CONFIG}


def test_a_repository_that_is_not_there_is_a_clear_error_with_the_setting_s_name(
    hub: LocalHub, pull_both: StartPull, vae: HubSource
) -> None:
    reason = pull_both(TURBO_VAE=f"{vae.hub}:nobody/nothing").fails()
    assert f"does not have {vae.hub}:nobody/nothing@main, or shows it only to its members. Check TURBO_VAE." in reason
    assert not hub.downloads


@pytest.fixture
def other_hub(tiny_folder: Path) -> Iterator[LocalHub]:
    """The Hugging Face Hub beside openMind Hub; its model needs a token."""
    hub = LocalHub(tiny_folder, None)
    hub.token = TOKEN
    hub.start()
    yield hub
    hub.stop()


@only_openmind
def test_a_vae_from_one_hub_hides_no_token_for_the_model_on_the_other(
    other_hub: LocalHub, pull_both: StartPull, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "cache" / "huggingface" / "token"  # where `hf auth login` writes it
    token.parent.mkdir(parents=True)
    token.write_text(TOKEN)
    pull_both(
        TURBO_MODEL=f"hf:{REPOSITORY}",
        HF_ENDPOINT=f"http://127.0.0.1:{other_hub.port}",
        HF_TOKEN="",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    ).succeeds()
    locate(HubSource("hf", REPOSITORY), weights)
    locate(HubSource("openmind", NAME), weights, VAE)
