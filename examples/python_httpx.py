"""Text to image, image to image and inpainting, with httpx.

[SERVICE_KEY=KEY] python examples/python_httpx.py [URL]
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import httpx

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVICE_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("SERVICE_KEY")
BUSY = (429, 503)
ATTEMPTS = 5


def ask(client: httpx.Client, path: str, **body: Any) -> httpx.Response:
    """Send a request. If the service is busy, retry after `Retry-After`. On any other error, exit with its reason."""
    answer = client.post(path, **body)
    for _ in range(ATTEMPTS - 1):
        if answer.status_code not in BUSY or "Retry-After" not in answer.headers:
            break
        time.sleep(int(answer.headers["Retry-After"]))
        answer = client.post(path, **body)
    if answer.is_error:  # application/problem+json: `detail` is for people, `code` is for programs
        problem = answer.json()
        sys.exit(f"{problem['code']}: {problem['detail']}")
    return answer


with httpx.Client(base_url=URL, timeout=120, headers={"X-API-Key": KEY} if KEY else {}) as client:
    made = ask(client, "/txt2img", json={"prompt": "a fox with a scarf", "seed": 1})
    Path("one.png").write_bytes(made.content)
    print("one.png, seed", made.headers["X-Seed"])

    # The same fox on another background. Pass bytes, not an open file: a retry sends them again.
    changed = ask(
        client,
        "/img2img",
        files={"image": ("one.png", made.content)},
        data={"prompt": "a fox on a blue background", "strength": "0.5", "num_inference_steps": "2", "seed": "1"},
    )
    Path("two.png").write_bytes(changed.content)
    print("two.png,", changed.headers["Server-Timing"])

    # The same picture, 256 pixels wider on both sides (top, right, bottom, left). To draw a part of a picture anew,
    # send a second file `mask`, which is white there.
    extended = ask(
        client,
        "/inpaint",
        files={"image": ("two.png", changed.content)},
        data={"prompt": "a fox in a wide blue room", "extend": "0,256,0,256", "seed": "1"},
    )
    Path("three.png").write_bytes(extended.content)
    print("three.png,", extended.headers["X-Image-Size"])
