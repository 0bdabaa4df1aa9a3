"""Measures the service's event loop under load: health probes and lag, with a bare loop as the control."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compare.results import Reactions, quantile
from benchmarks.support import process_tree
from benchmarks.support.contestants import Contestant, RunningServer, environment, interpreter, launch, start
from benchmarks.support.load import Outcome, Probe, closed_loop
from benchmarks.support.loop_lag import read_lags
from benchmarks.support.pictures import Picture, Prompts, Supply
from benchmarks.support.ports import free_port

_CLIENTS = 8
_PICTURES = {128: 64, 512: 16}
CONTROL = "bare event loop"


def measure_reactions(
    contestant: Contestant, supply: Supply, *, share: float, model: Path, folder: Path
) -> list[Reactions]:
    """Run the service with a lag recorder, load it at both sizes, and probe its health every 20 ms meanwhile.

    Raises:
        StartError: The service does not start.
    """
    lag_file, control_lag_file = folder / "lags.json", folder / "control-lags.json"
    command = ("-m", "benchmarks.support.watched_service", str(lag_file))
    watched = start(dataclasses.replace(contestant, command=command), interpreter(), model, folder)
    assert isinstance(watched, RunningServer)
    port = free_port()
    words = [str(interpreter()), "-m", "benchmarks.compare.bare_loop", str(port), str(control_lag_file)]
    control = launch(words, environment(model, {}), folder / "control.log")
    found = []
    try:
        _wait_for(port)
        for side, count in _PICTURES.items():
            pictures = supply.take(max(_CLIENTS, round(count * share)), side, Prompts.FRESH)
            read_lags(watched.pid, lag_file)  # clears the lags so far
            read_lags(control.pid, control_lag_file)
            probes = [Probe(watched.port, "/healthz/live"), Probe(watched.port, "/healthz/ready"), Probe(port, "/")]
            outcomes = asyncio.run(_load(watched, pictures, probes))
            bad = sum(outcome.status != 200 for outcome in outcomes)  # noqa: PLR2004 - HTTP's own
            ours, theirs = read_lags(watched.pid, lag_file), read_lags(control.pid, control_lag_file)
            found.append(_summary(contestant.key, side, probes[:2], ours, failures=bad))
            found.append(_summary(CONTROL, side, probes[2:], theirs))
    finally:
        watched.stop()
        process_tree.end(control.pid)
        control.wait()
    return found


async def _load(server: RunningServer, pictures: Sequence[Picture], probes: Sequence[Probe]) -> list[Outcome]:
    probing = [asyncio.create_task(probe.run()) for probe in probes]
    outcomes = await closed_loop(server.port, server.path, pictures, clients=_CLIENTS)
    for task in probing:
        task.cancel()
    await asyncio.gather(*probing, return_exceptions=True)
    return outcomes


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10

    async def knock() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    while True:
        try:
            asyncio.run(knock())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _summary(
    server: str, side: int, probes: Sequence[Probe], lags: dict[str, list[float]], *, failures: int = 0
) -> Reactions:
    latencies = [latency for probe in probes for latency in probe.latencies_s]
    return Reactions(
        server=server,
        side=side,
        probes=len(latencies),
        failures=failures + sum(probe.failures for probe in probes),
        p99_s=quantile(latencies, 0.99),
        max_s=max(latencies),
        raw_lag_p99_s=quantile(lags["raw_s"], 0.99),
        raw_lag_max_s=max(lags["raw_s"]),
        net_lag_p99_s=quantile(lags["net_s"], 0.99),
        net_lag_max_s=max(lags["net_s"]),
    )
