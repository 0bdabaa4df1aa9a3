"""Text to image, image to image and inpainting, with OpenAI's SDK.

    [SERVICE_KEY=KEY] python examples/python_openai.py [URL]

If the service is busy, the SDK retries by itself after the time in `Retry-After`.
"""

import os
import sys
from base64 import b64decode
from pathlib import Path

import openai
from openai.types import ImagesResponse
from PIL import Image

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVICE_URL", "http://127.0.0.1:8000")

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("SERVICE_KEY") or "none")


def save(answer: ImagesResponse, name: str) -> None:
    """Write the answer's first picture. Its `seed` is an extra field that OpenAI's API does not have."""
    image = (answer.data or [])[0]
    Path(name).write_bytes(b64decode(image.b64_json or ""))
    print(f"{name}, {answer.size}, {image.model_extra}")


try:
    save(client.images.generate(prompt="a fox with a scarf", size="512x512", extra_body={"seed": 1}), "one.png")

    # The same fox on another background. Parameters that OpenAI's API lacks go into extra_body.
    changes = {"strength": 0.5, "num_inference_steps": 2, "seed": 1}
    save(client.images.edit(image=Path("one.png"), prompt="a fox on a blue background", extra_body=changes), "two.png")

    # The lower half is drawn anew: the mask is transparent there. The rest keeps its pixels.
    mask = Image.open("two.png").convert("RGBA")
    mask.paste((0, 0, 0, 0), (0, mask.height // 2, mask.width, mask.height))
    mask.save("mask.png")
    wearing = client.images.edit(
        image=Path("two.png"), mask=Path("mask.png"), prompt="a fox with a red coat", extra_body={"seed": 1}
    )
    save(wearing, "three.png")
except openai.APIStatusError as error:  # `code` is for programs, `message` is for people
    sys.exit(f"{error.code}: {error.message}")
