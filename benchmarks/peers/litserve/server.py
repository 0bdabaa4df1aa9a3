"""LitServe with dynamic batching: at most 8 requests, and a wait of 10 ms.

A pipeline call has one size, so each size in a batch gets its own call.
"""

import io
import os
from collections.abc import Sequence
from typing import Any

import litserve
import torch
from diffusers import AutoPipelineForText2Image
from fastapi import Response
from PIL import Image


class TurboAPI(litserve.LitAPI):
    """Text to image."""

    def setup(self, device: str) -> None:
        """Load the pipeline in the worker process."""
        pipe: Any = AutoPipelineForText2Image.from_pretrained(
            os.environ["BENCH_MODEL"], dtype=torch.float32, variant="fp16"
        )
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe.to(device)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def predict(self, requests: Sequence[dict[str, Any]]) -> list[Image.Image]:
        """Make the pictures of one batch, in the order of its requests."""
        images: dict[int, Image.Image] = {}
        for size in {(request["width"], request["height"]) for request in requests}:
            alike = [i for i, request in enumerate(requests) if (request["width"], request["height"]) == size]
            made = self.pipe(
                prompt=[requests[i]["prompt"] for i in alike],
                num_inference_steps=1,
                guidance_scale=0.0,
                width=size[0],
                height=size[1],
                generator=[torch.Generator("cpu").manual_seed(requests[i]["seed"]) for i in alike],
            ).images
            images.update(zip(alike, made, strict=True))
        return [images[i] for i in range(len(requests))]

    def encode_response(self, image: Image.Image) -> Response:
        """Encode the picture as PNG."""
        file = io.BytesIO()
        image.save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")


if __name__ == "__main__":
    api = TurboAPI(max_batch_size=8, batch_timeout=0.01, api_path="/generate")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning")
