"""Times one client: how long the service takes to start with the demo model, and how long a picture takes.

    .venv/bin/python benchmarks/latency.py

Pictures are 512x512 in one step. Requests alternate with diffusers' own pipeline call in this process, on the same
machine in the same minutes, so that the ratio means something on a noisy machine too.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import torch
from diffusers import AutoPipelineForText2Image

_DEMO = Path(__file__).parents[1] / "app" / "weights" / "demo"
_REQUESTS = 40
_PROMPT = "a red circle on a blue background"


def _start() -> tuple[subprocess.Popen[str], str, float]:
    """Start the service, and return it, its URL, and the seconds until it was ready."""
    began = time.perf_counter()
    environment = os.environ | {"TURBO_MODEL": "demo", "TURBO_PORT": "0"}
    command = [sys.executable, "-m", "app", "serve"]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if match := re.search(r"Uvicorn running on http://[^:]+:([0-9]+)", line):
            url = f"http://127.0.0.1:{match[1]}"
            break
    else:
        raise RuntimeError(f"the service ended with {server.wait()}")
    while not httpx.get(f"{url}/healthz/ready").is_success:
        time.sleep(0.02)
    return server, url, time.perf_counter() - began


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Print the figures."""
    server, url, started = _start()
    pipeline = AutoPipelineForText2Image.from_pretrained(_DEMO, variant="fp16", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    with httpx.Client(base_url=url, timeout=60) as client:

        def ask() -> None:
            client.post("/txt2img", json={"prompt": _PROMPT}).raise_for_status()

        def call() -> None:
            pipeline(_PROMPT, num_inference_steps=1, guidance_scale=0.0, width=512, height=512)

        ask()
        call()
        requests, calls = zip(*((_timed(ask), _timed(call)) for _ in range(_REQUESTS)), strict=True)
    server.terminate()
    server.wait()
    p50, p95 = statistics.median(requests), statistics.quantiles(requests, n=20)[-1]
    bare = statistics.median(calls)
    print(f"ready after             {started:6.2f} s")
    print(f"POST /txt2img, p50      {p50:6.3f} s")
    print(f"POST /txt2img, p95      {p95:6.3f} s")
    print(f"diffusers alone, p50    {bare:6.3f} s")
    print(f"service over diffusers  {p50 / bare:6.2f}")


if __name__ == "__main__":
    main()
