import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from app.errors import (
    DeadPictureError,
    DeviceOutOfMemoryError,
    DeviceUnavailableError,
    InferenceError,
    MemoryTooSmallError,
    WeightsError,
)
from app.images.sizes import Size
from app.modes.img2img import Img2ImgParams
from app.modes.inpaint import Area, Fill, InpaintParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams, LoadedPipelines, Mode, PipelineImage
from app.pipelines.checkpoint import count_parameters, weights_errors
from app.pipelines.diffusion import check_alive, extremes
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings
from tests.support.tiny_model import shard_unet
from tests.support.warm_process import WarmProcess

START = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 20).convert("RGB")
MASK = Image.new("L", START.size)
MASK.paste(255, (24, 8, 64, 48))


def load(folder: Path, **options: Any) -> LoadedPipelines:
    return load_sdxl_turbo(folder, Settings(device="cpu", **options), model="demo")


@pytest.fixture(scope="module")
def pipelines(tiny_folder: Path) -> LoadedPipelines:
    return load(tiny_folder)


def txt2img(prompt: str = "a cat", *, seed: int = 1, steps: int = 1) -> Txt2ImgParams:
    return Txt2ImgParams(prompt=prompt, seed=seed, num_inference_steps=steps, width=96, height=64)


def img2img(prompt: str = "a cat", *, seed: int = 1, steps: int = 2, strength: float = 0.5) -> Img2ImgParams:
    return Img2ImgParams(prompt=prompt, seed=seed, num_inference_steps=steps, strength=strength, image=START)


def inpaint(
    prompt: str = "a cat",
    *,
    seed: int = 1,
    steps: int = 4,
    strength: float = 1.0,
    mask: Image.Image = MASK,
    fill: Fill = "original",
) -> InpaintParams:
    area = Area.of(np.asarray(START), mask, Size(96, 64), feather=8, padding=None, max_pixels=1 << 20)
    return InpaintParams(prompt=prompt, seed=seed, num_inference_steps=steps, strength=strength, area=area, fill=fill)


def make(pipelines: LoadedPipelines, params: GenerationParams) -> PipelineImage:
    return pipelines.by_mode[params.mode]([params])[0]


def pixels(made: PipelineImage) -> Any:
    return made.pixels


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_text_to_image_gives_the_pixels_of_diffusers_own_call(
    pipelines: LoadedPipelines, tiny_folder: Path, steps: int
) -> None:
    oracle = AutoPipelineForText2Image.from_pretrained(tiny_folder, variant="fp16", dtype=torch.float32)
    oracle.vae.to(memory_format=torch.channels_last)
    expected = oracle(
        "a cat",
        num_inference_steps=steps,
        guidance_scale=0.0,
        width=96,
        height=64,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert make(pipelines, txt2img(steps=steps)).pixels.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (2, 0.5), (3, 0.7), (4, 0.5), (4, 1.0)])
def test_image_to_image_gives_the_pixels_of_diffusers_own_call(
    pipelines: LoadedPipelines, tiny_folder: Path, steps: int, strength: float
) -> None:
    oracle = AutoPipelineForImage2Image.from_pretrained(tiny_folder, variant="fp16", dtype=torch.float32)
    oracle.vae.to(memory_format=torch.channels_last)
    expected = oracle(
        "a cat",
        image=START,
        num_inference_steps=steps,
        strength=strength,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    made = make(pipelines, img2img(steps=steps, strength=strength))
    assert made.pixels.tobytes() == expected.tobytes()


def inpainted_by_diffusers(folder: Path, params: InpaintParams, **kwargs: Any) -> Image.Image:
    oracle = AutoPipelineForInpainting.from_pretrained(folder, variant="fp16", dtype=torch.float32, **kwargs)
    oracle.vae.to(memory_format=torch.channels_last)
    made: Image.Image = oracle(
        params.prompt,
        image=params.start,
        mask_image=params.mask,
        num_inference_steps=params.num_inference_steps,
        strength=params.strength,
        guidance_scale=0.0,
        width=params.width,
        height=params.height,
        generator=torch.Generator().manual_seed(params.seed),
    ).images[0]
    return made


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (2, 0.5), (3, 0.7), (4, 0.5), (4, 1.0)])
def test_inpainting_gives_the_pixels_of_diffusers_own_call_before_they_are_pasted(
    pipelines: LoadedPipelines, tiny_folder: Path, steps: int, strength: float
) -> None:
    params = inpaint(steps=steps, strength=strength)
    expected = inpainted_by_diffusers(tiny_folder, params)
    assert make(pipelines, params).pixels.tobytes() == expected.tobytes()


def test_a_grey_and_ragged_mask_gives_the_pixels_of_diffusers_own_call(
    pipelines: LoadedPipelines, tiny_folder: Path
) -> None:
    ragged = Image.effect_noise(START.size, 90)
    params = inpaint(steps=3, strength=0.7)
    params = replace(params, area=replace(params.area, mask=ragged))
    expected = inpainted_by_diffusers(tiny_folder, params)
    assert make(pipelines, params).pixels.tobytes() == expected.tobytes()


def test_with_noise_the_masked_part_forgets_what_it_showed(pipelines: LoadedPipelines) -> None:
    def inside(params: InpaintParams) -> Any:
        area = replace(params.area, image=Image.composite(Image.new("RGB", START.size, "red"), START, MASK))
        return pixels(make(pipelines, params)), pixels(make(pipelines, replace(params, area=area)))

    original, red = inside(inpaint(steps=2, strength=0.5))
    forgotten, also = inside(inpaint(steps=2, strength=0.5, fill="noise"))
    outside = np.asarray(MASK) == 0
    assert (original != red).any()
    assert np.abs(forgotten[~outside].astype(int) - also[~outside]).mean() < 1
    assert (forgotten != original).any()


@pytest.mark.parametrize(
    "params", [txt2img(steps=4), img2img(steps=4), inpaint()], ids=["txt2img", "img2img", "inpaint"]
)
def test_the_same_seed_gives_the_same_picture_whatever_was_made_before(
    pipelines: LoadedPipelines, params: GenerationParams
) -> None:
    first = pixels(make(pipelines, params))
    make(pipelines, txt2img("something else", seed=9, steps=3))
    make(pipelines, img2img("something else", seed=9, steps=3))
    make(pipelines, inpaint("something else", seed=9, steps=3, fill="noise", strength=0.7))
    assert (pixels(make(pipelines, params)) == first).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (txt2img(), txt2img(seed=2)),
        (txt2img(), txt2img("a red house by the sea")),
        (txt2img(), txt2img(steps=4)),
        (txt2img(""), txt2img("a cat")),
        (img2img(), img2img(seed=2)),
        (img2img(steps=4, strength=1.0), img2img("a red house by the sea", steps=4, strength=1.0)),
        (img2img(), img2img(strength=1.0)),
    ],
    ids=["seed", "prompt", "steps", "empty prompt", "img2img seed", "img2img prompt", "img2img strength"],
)
def test_everything_that_is_asked_for_matters(
    pipelines: LoadedPipelines, one: GenerationParams, other: GenerationParams
) -> None:
    assert (pixels(make(pipelines, one)) != pixels(make(pipelines, other))).any()


def test_the_picture_that_image_to_image_starts_from_matters(pipelines: LoadedPipelines) -> None:
    black = Img2ImgParams(
        prompt="a cat", seed=1, num_inference_steps=2, strength=0.5, image=Image.new("RGB", START.size)
    )
    assert (pixels(make(pipelines, img2img())) != pixels(make(pipelines, black))).any()


def test_all_modes_share_every_component_but_the_scheduler(pipelines: LoadedPipelines) -> None:
    pipes = [pipelines.by_mode[mode].pipe for mode in Mode]  # type: ignore[attr-defined] # what is shared is what is tested
    for one, other in itertools.combinations(pipes, 2):
        assert one.unet is other.unet
        assert one.vae is other.vae
        assert one.text_encoder is other.text_encoder
        assert one.text_encoder_2 is other.text_encoder_2
        assert one.scheduler is not other.scheduler
        assert one.scheduler.config == other.scheduler.config


def test_peak_memory_is_one_model_s(tiny_folder: Path, tmp_path: Path) -> None:
    """All modes together may take a quarter of a model more than one mode alone; a second copy would take a whole."""
    folder = tmp_path / "wide"
    shutil.copytree(tiny_folder, folder)
    config = UNet2DConditionModel.load_config(folder / "unet")
    unet = UNet2DConditionModel.from_config({**config, "block_out_channels": (256, 384, 512)})
    unet_bytes = sum(parameter.numel() for parameter in unet.parameters()) * 4
    unet.half().save_pretrained(folder / "unet", variant="fp16")
    one_mode = f"""
import torch
from diffusers import AutoPipelineForText2Image
kept = AutoPipelineForText2Image.from_pretrained({str(folder)!r}, variant="fp16", dtype=torch.float32)
"""
    both_modes = f"""
from pathlib import Path
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings
kept = load_sdxl_turbo(Path({str(folder)!r}), Settings(device="cpu", dtype="fp32"), model="")
"""
    assert unet_bytes > 1 << 27
    assert _peak_bytes(both_modes, tmp_path) - _peak_bytes(one_mode, tmp_path) < unet_bytes / 4


def _peak_bytes(code: str, folder: Path) -> int:
    measure = f"{code}\nprint('peak', open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr)"
    process = WarmProcess(f"import sys\n{measure}", os.environ, stderr=folder / "log")
    assert process.wait(60) == 0
    return int((folder / "log").read_text(encoding="utf-8").rpartition("peak ")[2]) * 1024


def test_prompt_tokens_are_counted_with_their_marks(pipelines: LoadedPipelines) -> None:
    """The tiny model's tokenizer has no merges: a letter is a token."""
    made = make(pipelines, txt2img("cat"))
    assert (made.prompt_tokens, made.prompt_truncated) == (5, False)
    assert make(pipelines, txt2img("")).prompt_tokens == 2


def test_a_prompt_over_77_tokens_is_cut_and_says_so(pipelines: LoadedPipelines) -> None:
    full, over, longer = (make(pipelines, txt2img("x" * letters)) for letters in (75, 76, 500))
    assert (full.prompt_tokens, full.prompt_truncated) == (77, False)
    assert (over.prompt_tokens, over.prompt_truncated) == (77, True)
    assert longer.pixels.tobytes() == over.pixels.tobytes()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_paints_nearly_the_same_picture(
    pipelines: LoadedPipelines, tiny_folder: Path, dtype: str
) -> None:
    half = load(tiny_folder, dtype=dtype)
    for params in (txt2img(), img2img()):
        difference = np.abs(pixels(make(half, params)).astype(int) - pixels(make(pipelines, params)))
        assert difference.mean() < 3


def test_in_fp16_the_vae_stays_in_fp32_before_and_after_a_picture(tiny_folder: Path) -> None:
    half = load(tiny_folder, dtype="fp16")
    pipe = half.by_mode[Mode.TXT2IMG].pipe  # type: ignore[attr-defined] # its dtype shows nowhere else
    for params in (txt2img(), img2img()):
        make(half, params)
        assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.float16, torch.float32)


def test_a_unet_in_several_files_loads_the_same(pipelines: LoadedPipelines, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(tiny_folder, folder)
    shard_unet(folder)
    assert count_parameters(folder / "unet") == count_parameters(tiny_folder / "unet")  # decides about the dtype
    assert make(load(folder), txt2img()).pixels.tobytes() == make(pipelines, txt2img()).pixels.tobytes()


def test_a_file_beside_the_unet_s_own_is_no_part_of_it(
    pipelines: LoadedPipelines, tiny_folder: Path, tmp_path: Path
) -> None:
    """Repositories may have one for other programs."""
    folder = tmp_path / "more"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, folder / "unet/x.fp16.safetensors")
    assert count_parameters(folder / "unet") == count_parameters(tiny_folder / "unet")
    assert make(load(folder), txt2img()).pixels.tobytes() == make(pipelines, txt2img()).pixels.tobytes()


def changed_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_text_encoders_in_the_older_naming_of_the_hub_s_files_load_the_same(
    pipelines: LoadedPipelines, tiny_folder: Path, tmp_path: Path
) -> None:
    """SDXL-Turbo's own files name the encoder's tensors `text_model.*`; transformers 5 writes them without."""
    folder = tmp_path / "older"
    shutil.copytree(tiny_folder, folder)
    changed_tensors(
        folder / "text_encoder" / "model.fp16.safetensors",
        lambda tensors: {f"text_model.{name}": tensor for name, tensor in tensors.items()},
    )
    assert make(load(folder), txt2img()).pixels.tobytes() == make(pipelines, txt2img()).pixels.tobytes()


@pytest.mark.parametrize(
    "path",
    [
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ],
)
def test_weights_with_a_tensor_missing_are_refused_and_not_filled_with_noise(
    tiny_folder: Path, tmp_path: Path, path: str
) -> None:
    folder = tmp_path / "holes"
    shutil.copytree(tiny_folder, folder)
    changed_tensors(folder / path, lambda tensors: dict(list(tensors.items())[1:]))
    with pytest.raises(WeightsError, match=r"holes.*lacks 1 of the model's tensors|holes cannot be loaded"):
        load(folder)


def test_weights_that_give_no_numbers_fail_instead_of_painting_black(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(tiny_folder, folder)
    changed_tensors(
        folder / "unet" / "diffusion_pytorch_model.fp16.safetensors",
        lambda tensors: {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()},
    )
    with pytest.raises(InferenceError, match="not finite numbers"):
        make(load(folder), txt2img())


def test_weights_that_diffusers_cannot_load_are_a_clear_error(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(tiny_folder, folder)
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 64', '"cross_attention_dim": "x"'))
    with pytest.raises(WeightsError, match=r"odd cannot be loaded: .+"):
        load(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that must not be there")
def test_weights_larger_than_the_memory_are_a_clear_error_before_they_are_loaded(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "large"
    shutil.copytree(tiny_folder, folder)
    tensor = {"x": {"dtype": "F16", "shape": [2 << 40], "data_offsets": [0, 4 << 40]}}
    header = json.dumps(tensor).encode()
    with (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (4 << 40))  # takes no room on the disk
    with pytest.raises(MemoryTooSmallError, match=r"take \d{4}\.\d GB of memory in .*, and a start takes 33% more"):
        load(folder)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("can't allocate memory: 9 bytes")]
)
def test_memory_that_ends_while_weights_are_loaded_is_no_fault_of_the_weights(error: Exception) -> None:
    with pytest.raises(MemoryTooSmallError, match="The weights do not fit into memory"), weights_errors("The weights"):
        raise error


def test_a_large_picture_for_which_the_memory_is_short_is_refused_before_the_kernel_ends_the_process(
    pipelines: LoadedPipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [10 << 20, 20 << 20]
    monkeypatch.setattr("app.pipelines.diffusion.memory_bytes", lambda: (free.pop(0) if free else 20 << 20, 1 << 40))
    large = replace(txt2img(), width=1024, height=1024)
    with pytest.raises(DeviceOutOfMemoryError, match=r"takes \d\.\d GB of memory, and 0\.0 GB are free"):
        make(pipelines, large)
    assert not free  # looked at again after freed memory was returned
    assert make(pipelines, txt2img()).pixels.shape == (64, 96, 3)
    free += [10 << 20, 10 << 30]
    assert make(pipelines, large).pixels.shape == (1024, 1024, 3)


def test_a_device_that_is_not_there_is_an_error_and_no_fallback(tiny_folder: Path) -> None:
    with pytest.raises(DeviceUnavailableError, match="TURBO_DEVICE=cuda:0 is not available"):
        load_sdxl_turbo(tiny_folder, Settings(device="cuda"), model="demo")


# Another VAE.


def test_a_tiny_vae_takes_the_place_of_the_model_s_own_in_both_modes(
    pipelines: LoadedPipelines, tiny_folder: Path, tiny_vae: Path
) -> None:
    other = load_sdxl_turbo(tiny_folder, Settings(device="cpu"), model="demo", vae_folder=tiny_vae)
    for params in (txt2img(steps=2), img2img()):
        assert (pixels(make(other, params)) != pixels(make(pipelines, params))).any()
    oracle = AutoPipelineForText2Image.from_pretrained(
        tiny_folder, variant="fp16", dtype=torch.float32, vae=AutoencoderTiny.from_pretrained(tiny_vae)
    )
    oracle.vae.to(memory_format=torch.channels_last)
    expected = oracle(
        "a cat",
        num_inference_steps=2,
        guidance_scale=0.0,
        width=96,
        height=64,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    difference = np.abs(pixels(make(other, txt2img(steps=2))).astype(int) - np.asarray(expected))
    assert difference.max() <= 1


def test_a_vae_of_the_model_s_own_class_is_loaded_in_full_precision_unless_there_is_an_fp16_variant(
    pipelines: LoadedPipelines, tiny_folder: Path, tmp_path: Path
) -> None:
    """Both as https://huggingface.co/madebyollin/sdxl-vae-fp16-fix has them, and a copy of it: one file, one name."""
    own = AutoencoderKL.from_pretrained(tiny_folder / "vae", variant="fp16")
    own.save_pretrained(tmp_path)
    load_other = partial(load_sdxl_turbo, tiny_folder, Settings(device="cpu"), model="demo", vae_folder=tmp_path)
    assert make(load_other(), txt2img()).pixels.tobytes() == make(pipelines, txt2img()).pixels.tobytes()
    for parameter in own.parameters():
        parameter.data.zero_()
    own.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(DeadPictureError):
        make(load_other(), txt2img())


def test_a_scheduler_that_is_not_sdxl_turbo_s_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_folder, folder)
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "model_index.json"):
        path.write_text(path.read_text().replace("EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"))
    with pytest.raises(WeightsError, match="is not an EulerAncestralDiscreteScheduler"):
        load(folder)


def test_graphs_that_need_cuda_are_refused_elsewhere(tiny_folder: Path) -> None:
    with pytest.raises(DeviceUnavailableError, match="TURBO_COMPILE=on needs CUDA"):
        load(tiny_folder, compile="on")


def test_after_a_call_of_which_a_later_part_failed_the_device_is_checked_anew(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value that arrived with the first part says nothing about what came later."""
    loaded = load(tiny_folder, batching="off")
    pipeline: Any = loaded.by_mode[Mode.TXT2IMG]
    decode = pipeline.pipe.vae.decode
    calls: list[None] = []

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) > 1:
            raise ValueError
        return decode(*args, **options)

    monkeypatch.setattr(pipeline.pipe.vae, "decode", failing)
    with pytest.raises(ValueError):  # noqa: PT011 - the test's own
        pipeline([txt2img(seed=1), txt2img(seed=2)])
    assert len(calls) == 2
    computed: list[None] = []
    begin_check = pipeline.device.begin_check

    def counted() -> torch.Tensor:
        computed.append(None)
        made: torch.Tensor = begin_check()
        return made

    monkeypatch.setattr(pipeline.device, "begin_check", counted)
    loaded.device.check()
    assert computed


# Pictures that are none, before anything is clamped.


def picture(**pixels: float) -> torch.Tensor:
    """A picture's tensor of noise; keyword arguments fill `all` of it, one `row`, or one `pixel`."""
    tensor = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    places = {"all": tensor, "row": tensor[:, :, 0], "pixel": tensor[:, 1, 5, 7]}
    for place, value in pixels.items():
        places[place].fill_(value)
    return tensor


def judge(pixels: torch.Tensor) -> None:
    check_alive(extremes(pixels).tolist())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["pixel", "row", "all"])
def test_one_value_that_is_no_number_makes_a_dead_picture(place: str, value: float) -> None:
    with pytest.raises(DeadPictureError, match="not finite numbers"):
        judge(picture(**{place: value}))


@pytest.mark.parametrize("value", [0.0, 1.0, -7.0])
def test_one_single_value_everywhere_makes_a_dead_picture(value: float) -> None:
    with pytest.raises(DeadPictureError, match="the same value"):
        judge(picture(all=value))


def test_one_single_value_in_each_channel_makes_a_dead_picture() -> None:
    with pytest.raises(DeadPictureError, match="the same value"):
        judge(torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 16, 16))


def test_a_white_picture_as_a_vae_makes_it_is_alive() -> None:
    """White ends up beyond 1, a little differently in each pixel; clamped, it would be one single value."""
    judge(picture() * 0.01 + 1.5)


def test_a_row_of_one_single_value_is_alive() -> None:
    judge(picture(row=1.0, pixel=0.0))
