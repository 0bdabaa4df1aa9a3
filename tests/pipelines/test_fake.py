import numpy as np
import numpy.typing as npt
from PIL import Image

from app.modes.img2img import Img2ImgParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.fake import FakePipeline


def painted(prompt: str = "a", seed: int = 0, steps: int = 1) -> npt.NDArray[np.uint8]:
    params = Txt2ImgParams(prompt=prompt, seed=seed, num_inference_steps=steps, width=64, height=72)
    return FakePipeline()([params])[0].pixels


def test_the_fake_paints_the_same_for_the_same_and_another_for_another() -> None:
    assert painted().shape == (72, 64, 3)
    assert painted().tobytes() == painted().tobytes()
    assert len({image.tobytes() for image in (painted(), painted("b"), painted(seed=1), painted(steps=2))}) == 4


def test_the_fake_keeps_more_of_the_picture_the_smaller_the_strength() -> None:
    red = Image.new("RGB", (64, 64), "red")
    little, much = (
        FakePipeline()([Img2ImgParams(prompt="a", seed=0, num_inference_steps=4, strength=s, image=red)])[0].pixels
        for s in (0.25, 1.0)
    )
    assert little[..., 0].mean() > much[..., 0].mean()


def test_the_fake_counts_a_word_as_a_token() -> None:
    params = Txt2ImgParams(prompt="a " * 76, seed=0, num_inference_steps=1, width=64, height=64)
    made = FakePipeline()([params])[0]
    assert (made.prompt_tokens, made.prompt_truncated) == (77, True)
