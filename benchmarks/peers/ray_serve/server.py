"""Starts Ray and the deployment on this machine, and waits."""

import os
import threading

import deployment
import ray
from ray import serve

if __name__ == "__main__":
    handed_on = ("BENCH_MODEL", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        runtime_env={"env_vars": {name: os.environ[name] for name in handed_on}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    serve.run(deployment.turbo)
    threading.Event().wait()
