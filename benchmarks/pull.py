"""Measures how fast `pull` downloads a large file from a hub that limits the speed of each connection.

    .venv/bin/python -m benchmarks.pull [--megabytes 512] [--limit 8] [--connections 1,2,4,8,16]

The hub is that of the tests, on loopback, and the client huggingface_hub. Each pull is a process of its own. Its time
contains the start of Python, the listing and the verification by SHA-256.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.weights.local_hub import REPOSITORY, LocalHub

_FILE = "sd_xl_turbo.safetensors"
_CHILD = f"""
import sys
from pathlib import Path
import app.weights.download as download
from app.weights.layout import MODEL
from app.weights.source import HubSource
download._CONNECTIONS = int(sys.argv[2])
download.download(HubSource("hf", "{REPOSITORY}", file="{_FILE}"), Path(sys.argv[1]), MODEL)
"""


def _pull_s(hub: LocalHub, connections: int) -> float:
    """Return the time of a pull into an empty folder, in seconds."""
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.port}", "HF_HUB_DISABLE_XET": "1"}
    with tempfile.TemporaryDirectory() as weights:
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", _CHILD, weights, str(connections)], env=environment, check=True)
        return time.monotonic() - started


def main() -> None:
    """Print a row for each number of connections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512, help="size of the file")
    parser.add_argument("--limit", type=int, default=8, help="megabytes per second of a connection")
    parser.add_argument("--connections", default="1,2,4,8,16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / _FILE).open("wb") as file:
            for _ in range(options.megabytes):
                file.write(os.urandom(10**6))
        hub = LocalHub(Path(folder), certificate=None)
        hub.etag(_FILE)  # computed once, outside the measurement
        hub.connection_bytes_per_s = options.limit * 10**6
        hub.start()
        try:
            first_s = None
            for connections in map(int, options.connections.split(",")):
                took_s = _pull_s(hub, connections)
                first_s = first_s or took_s
                speed = options.megabytes / took_s
                print(f"{connections:3} connections  {took_s:6.1f} s  {speed:6.1f} MB/s  {first_s / took_s:4.1f} x")
        finally:
            hub.stop()


if __name__ == "__main__":
    main()
