"""Ray Serve: a FastAPI ingress, and one replica of the model with `serve.batch` (at most 8 requests, 10 ms)."""

import io
import os
from typing import Any

from fastapi import FastAPI, Response
from pydantic import BaseModel
from ray import serve
from ray.serve.handle import DeploymentHandle

app = FastAPI()


class Request(BaseModel):
    """A request for one picture."""

    prompt: str
    seed: int = 0
    width: int = 512
    height: int = 512


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=16)
class Turbo:
    """Text to image."""

    def __init__(self) -> None:
        """Load the pipeline. torch is imported here because the ingress imports this module too, without torch."""
        import torch  # noqa: PLC0415
        from diffusers import AutoPipelineForText2Image  # noqa: PLC0415

        self.torch = torch
        self.pipe: Any = AutoPipelineForText2Image.from_pretrained(
            os.environ["BENCH_MODEL"], dtype=torch.float32, variant="fp16"
        )
        self.pipe.set_progress_bar_config(disable=True)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def generate(self, requests: list[Request]) -> list[bytes]:
        """Make the pictures of one batch as PNG, in the order of its requests. Each size gets one pipeline call."""
        pngs: dict[int, bytes] = {}
        for size in {(request.width, request.height) for request in requests}:
            alike = [i for i, request in enumerate(requests) if (request.width, request.height) == size]
            images = self.pipe(
                prompt=[requests[i].prompt for i in alike],
                num_inference_steps=1,
                guidance_scale=0.0,
                width=size[0],
                height=size[1],
                generator=[self.torch.Generator("cpu").manual_seed(requests[i].seed) for i in alike],
            ).images
            for i, image in zip(alike, images, strict=True):
                file = io.BytesIO()
                image.save(file, "PNG")
                pngs[i] = file.getvalue()
        return [pngs[i] for i in range(len(requests))]


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
@serve.ingress(app)
class Ingress:
    """The HTTP side; `turbo` is the model's handle."""

    def __init__(self, turbo: DeploymentHandle) -> None:
        self.turbo = turbo

    @app.post("/generate")
    async def generate(self, request: Request) -> Response:
        """Return the picture."""
        return Response(await self.turbo.generate.remote(request), media_type="image/png")


turbo = Ingress.bind(Turbo.bind())
