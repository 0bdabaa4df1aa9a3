"""The plain server: the model card's snippet behind FastAPI, one lock, one executor thread. No tuning."""

import asyncio
import io
import os
from typing import Any

import torch
import uvicorn
from diffusers import AutoPipelineForText2Image
from fastapi import FastAPI, Response
from pydantic import BaseModel

pipe: Any = AutoPipelineForText2Image.from_pretrained(
    os.environ["BENCH_MODEL"], dtype=getattr(torch, os.environ["BENCH_DTYPE"]), variant="fp16"
)
pipe.set_progress_bar_config(disable=True)
lock = asyncio.Lock()
app = FastAPI()


class Request(BaseModel):
    """A request for one picture."""

    prompt: str
    seed: int = 0
    width: int = 512
    height: int = 512


def draw(request: Request) -> bytes:
    """Make the picture and encode it as PNG."""
    image = pipe(
        prompt=request.prompt,
        num_inference_steps=1,
        guidance_scale=0.0,
        width=request.width,
        height=request.height,
        generator=torch.Generator("cpu").manual_seed(request.seed),
    ).images[0]
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@app.post("/generate")
async def generate(request: Request) -> Response:
    """Return the picture."""
    async with lock:
        png = await asyncio.get_running_loop().run_in_executor(None, draw, request)
    return Response(png, media_type="image/png")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), log_level="warning")
