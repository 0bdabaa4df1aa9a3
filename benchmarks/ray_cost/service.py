"""Runs the service behind Ray Serve as deploy/ray does, with one replica on this machine."""

import os
import sys
import threading
from pathlib import Path

import ray
from ray import serve

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "deploy/ray"))

from sdxl_turbo_ray import build  # noqa: E402 - in the folder that was just added

if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        object_store_memory=80_000_000,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT / 'deploy/ray'}:{ROOT}"}},
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(os.environ["TURBO_PORT"])},
        logging_config={"enable_access_log": False},
    )
    serve.run(build({}))
    threading.Event().wait()
