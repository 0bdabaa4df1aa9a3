import hashlib
import importlib.metadata
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from app.inference import identity
from app.inference.identity import DECIDING_SETTINGS, identity_of
from app.inference.start_progress import StartProgress
from app.pipelines.base import LoadedPipelines, Lora
from app.pipelines.fake import load_fake
from app.settings import Settings

UNSEEN = {
    *(
        "api_keys_file",
        "body_timeout_s",
        "cors_origins",
        "deadline_s",
        "docs",
        "drain_s",
        "env_file",
        "header_timeout_s",
    ),
    *("host", "idle_check_s", "hang_limit_s", "log_format", "log_level", "log_prompts", "max_body_bytes"),
    *("max_connections", "max_queue", "max_steps", "max_upload_pixels", "mcp", "metrics", "model_aliases"),
    *("playground", "port", "prompt_cache_bytes", "rate_limit", "sdapi", "strict", "trusted_proxies"),
    *("url_cache_control", "url_embedding", "url_rate_limit", "weights_dir", "graph_cache_dir"),
}
"""Settings that say who may ask, how much and how fast, and what is logged: they do not change a picture."""

IN_THE_LOADED_MODEL = {"device", "dtype", "fused_operators", "lora", "model", "threads", "vae"}
"""Settings whose effect the loader reports."""

OTHER: dict[str, object] = {
    "aigc_producer": "somebody",
    "batching": "fast",
    "channels_last": "off",
    "compile": "on",
    "max_batch": 2,
    "max_pixels": 1024 * 1024,
    "scheduler": "turbo",
    "vae_dtype": "fp32",
    "warm_up_sizes": "64x64",
}
"""Other values of the settings that are no switches."""


def changed(name: str, field: FieldInfo) -> Settings:
    return Settings(**{name: OTHER.get(name, not field.default)})  # type: ignore[arg-type]


def test_every_setting_that_may_change_a_picture_is_in_the_identity() -> None:
    assert set(Settings.model_fields) == {*DECIDING_SETTINGS, *UNSEEN, *IN_THE_LOADED_MODEL}


@pytest.mark.parametrize("name", DECIDING_SETTINGS)
def test_a_deciding_setting_changes_the_identity(name: str) -> None:
    loaded = load_fake()
    other = changed(name, Settings.model_fields[name])
    assert identity_of(loaded, other) != identity_of(loaded, Settings())


@pytest.mark.parametrize(
    "change",
    [
        {"model": "another"},
        {"vae": "a VAE"},
        {"loras": [Lora("a LoRA", 0.5)]},
        {"weights_sha256": hashlib.sha256(b"other weights").hexdigest()},
        {"dtype": "float16"},
        {"fused_operators": ["attention"]},
        {"computed_by": "Ascend910B"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_model_or_device_has_another_identity(change: dict[str, object]) -> None:
    loaded = load_fake()
    assert identity_of(replace(loaded, **change), Settings()) != identity_of(loaded, Settings())  # type: ignore[arg-type]


@pytest.fixture
def forgetful() -> Iterator[None]:
    identity.installed_versions.cache_clear()
    yield
    identity.installed_versions.cache_clear()


@pytest.mark.usefixtures("forgetful")
def test_another_version_of_the_service_or_of_a_library_has_another_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of(load_fake(), Settings())
    monkeypatch.setattr(identity, "__version__", "99.0")
    newer = identity_of(load_fake(), Settings())
    assert newer != before
    installed = importlib.metadata.version
    monkeypatch.setattr(identity, "version", lambda name: "99.0" if name == "torch" else installed(name))
    identity.installed_versions.cache_clear()
    assert identity_of(load_fake(), Settings()) not in (before, newer)


def test_the_identity_is_the_same_after_a_restart() -> None:
    assert identity_of(load_fake(), Settings()) == identity_of(load_fake(), Settings(port=1, max_queue=3))


def test_a_loaded_model_says_what_computes(tiny_folder: Path) -> None:
    import torch  # noqa: PLC0415 - takes seconds

    from app.pipelines.sdxl_turbo import load_sdxl_turbo  # noqa: PLC0415 - importing torch takes seconds

    def load(threads: int) -> LoadedPipelines:
        return load_sdxl_turbo(tiny_folder, Settings(device="cpu", threads=threads), model="tiny")

    threads = torch.get_num_threads()
    try:
        one, two = load(1), load(2)
        assert one.computed_by == load(1).computed_by != two.computed_by
    finally:
        torch.set_num_threads(threads)  # other tests compare bytes with those of other processes


def test_beside_an_accelerator_the_processor_counts_because_it_writes_the_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch  # noqa: PLC0415 - takes seconds

    from app.pipelines.device import TorchDevice  # noqa: PLC0415 - imports torch

    class Accelerator:
        @staticmethod
        def get_device_name(_: torch.device) -> str:
            return "an accelerator"

    monkeypatch.setattr(torch, "get_device_module", lambda _: Accelerator)
    features = torch.cpu.get_capabilities()
    texts = set()
    for other in ({}, {"avx2": not features.get("avx2")}, {"num_logical_cores": 1000}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda other=other: {**features, **other})
        texts.add(TorchDevice(torch.device("cuda")).computed_by)
    assert len(texts) == 2


def test_other_weights_under_the_same_name_have_another_identity(
    tiny_folder: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    from app.main import load_model  # noqa: PLC0415 - the others need no app
    from tests.support.lora import write_lora  # noqa: PLC0415 - importing torch takes seconds

    model, vae = shutil.copytree(tiny_folder, tmp_path / "model"), shutil.copytree(tiny_vae, tmp_path / "vae")
    lora = write_lora(tmp_path / "style.safetensors", model, naming="kohya")
    settings = Settings(device="cpu", model=str(model), vae=str(vae), lora=str(lora))

    def identity_now() -> str:
        return identity_of(load_model(settings, StartProgress()), settings)

    first = identity_now()
    (model / "README.md").write_text("no weights", encoding="utf-8")
    assert identity_now() == first
    seen = {first}
    for file in (next((model / "unet").glob("*.safetensors")), next(vae.glob("*.safetensors")), lora):
        data = bytearray(file.read_bytes())
        data[-2] ^= 1  # of the last number
        file.write_bytes(data)
        seen.add(identity_now())
    assert len(seen) == 4
