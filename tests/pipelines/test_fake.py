from PIL import Image

from app.pipelines.base import Img2ImgParams, Txt2ImgParams
from app.pipelines.fake import FakePipeline


def painted(prompt: str = "a", seed: int = 0, steps: int = 1) -> Image.Image:
    params = Txt2ImgParams(prompt=prompt, seed=seed, num_inference_steps=steps, width=64, height=72)
    return FakePipeline()([params])[0].image


def test_the_fake_paints_the_same_for_the_same_and_another_for_another() -> None:
    assert painted().size == (64, 72)
    assert painted().tobytes() == painted().tobytes()
    assert len({image.tobytes() for image in (painted(), painted("b"), painted(seed=1), painted(steps=2))}) == 4


def test_the_fake_keeps_more_of_the_picture_the_smaller_the_strength() -> None:
    red = Image.new("RGB", (64, 64), "red")
    little, much = (
        FakePipeline()([Img2ImgParams(prompt="a", seed=0, num_inference_steps=4, strength=s, image=red)])[0].image
        for s in (0.25, 1.0)
    )
    reds = [image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))[0] for image in (little, much)]  # type: ignore[index] # an RGB pixel
    assert reds[0] > reds[1]


def test_the_fake_counts_a_word_as_a_token() -> None:
    params = Txt2ImgParams(prompt="a " * 76, seed=0, num_inference_steps=1, width=64, height=64)
    made = FakePipeline()([params])[0]
    assert (made.prompt_tokens, made.prompt_truncated) == (77, True)
