"""OpenVINO GenAI without a server: reads requests as lines of JSON, and answers each with one line.

Pictures stay in memory. If a request has "to", its last picture is written to that file as an array of bytes (.npy).
The noise comes from torch, drawn as diffusers draws it.
"""

import json
import os
import sys
import time

import numpy as np
import openvino
import openvino_genai as genai
import torch


class _Noise(genai.Generator):
    """Draws torch's noise in the order in which diffusers draws it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def next(self) -> float:
        return float(torch.randn((1,), generator=self._generator))

    def randn_tensor(self, shape: openvino.Shape) -> openvino.Tensor:
        return openvino.Tensor(torch.randn(tuple(shape), generator=self._generator).numpy().copy())


def main() -> None:
    """Answer requests from standard input until it ends."""
    # OpenVINO's default is bf16 on CPUs that support it, else fp32.
    precision = {"INFERENCE_PRECISION_HINT": "f32"} if os.environ["BENCH_DTYPE"] == "float32" else {}
    pipeline = genai.Text2ImagePipeline(
        os.environ["BENCH_MODEL_OPENVINO"],
        "CPU",
        INFERENCE_NUM_THREADS=int(os.environ["OMP_NUM_THREADS"]),
        **precision,
    )
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        latencies = []
        for prompt, seed in request["pictures"]:
            began = time.perf_counter()
            picture = pipeline.generate(
                prompt,
                num_inference_steps=1,
                guidance_scale=0.0,
                width=request["side"],
                height=request["side"],
                generator=_Noise(seed),
            ).data[0]
            latencies.append(time.perf_counter() - began)
            if "to" in request:
                np.save(request["to"], picture)
        print(json.dumps({"latencies_s": latencies}), flush=True)


if __name__ == "__main__":
    main()
