"""Times one client: the service's start, and its pictures.

    .venv/bin/python benchmarks/latency.py

The model is TURBO_MODEL (the demo model if unset) on TURBO_DEVICE; the weights must be on this disk. Pictures are
512x512 in one step. Requests alternate with calls of diffusers' own pipeline in this process, so the ratio is useful on
a noisy machine too.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from diffusers import AutoPipelineForText2Image

from app.pipelines.checkpoint import count_parameters
from app.pipelines.device import choose_dtype, open_device
from app.settings import Settings
from app.weights.source import FakeSource, parse_source
from app.weights.store import locate

_REQUESTS = 40
_PROMPT = "a red circle on a blue background"


@contextmanager
def _service() -> Iterator[tuple[str, float]]:
    """Run the service; yield its URL and the seconds until it was ready."""
    began = time.perf_counter()
    environment = os.environ | {"TURBO_PORT": "0"}
    with tempfile.NamedTemporaryFile("r") as log:
        command = [sys.executable, "-m", "app", "serve"]
        with Path(log.name).open("w") as stderr:
            server = subprocess.Popen(command, env=environment, stderr=stderr)
        try:
            while not (match := re.search(r"Uvicorn running on (http://\S+)", Path(log.name).read_text())):
                if server.poll() is not None:
                    raise RuntimeError(f"the service exited with code {server.returncode}")
                time.sleep(0.02)
            while not httpx.get(f"{match[1]}/healthz/ready").is_success:
                time.sleep(0.02)
            yield match[1], time.perf_counter() - began
        finally:
            server.terminate()
            server.wait()


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print the figures."""
    settings = Settings()
    source = parse_source(settings.model)
    if isinstance(source, FakeSource):
        sys.exit("The fake pipeline has no weights. Set TURBO_MODEL to a model.")
    folder, device = locate(source, settings.weights_dir), open_device(settings.device).torch_device
    dtype, _ = choose_dtype(settings.dtype, device, parameters=count_parameters(folder / "unet"))
    pipeline = AutoPipelineForText2Image.from_pretrained(folder, variant="fp16", dtype=dtype, add_watermarker=False)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)

    def call() -> None:
        pipeline(_PROMPT, num_inference_steps=1, guidance_scale=0.0, width=512, height=512)

    with _service() as (url, started), httpx.Client(base_url=url, timeout=60) as client:

        def ask() -> None:
            client.post("/txt2img", json={"prompt": _PROMPT}).raise_for_status()

        ask()
        call()
        requests, calls = zip(*((_timed(ask), _timed(call)) for _ in range(_REQUESTS)), strict=True)
    p50, p95 = statistics.median(requests), statistics.quantiles(requests, n=20)[-1]
    bare = statistics.median(calls)
    print(f"{source.name} on {device} as {str(dtype).removeprefix('torch.')}")
    print(f"ready after             {started:6.2f} s")
    print(f"POST /txt2img, p50      {p50:6.3f} s")
    print(f"POST /txt2img, p95      {p95:6.3f} s")
    print(f"diffusers alone, p50    {bare:6.3f} s")
    print(f"service over diffusers  {p50 / bare:6.2f}")


if __name__ == "__main__":
    main()
