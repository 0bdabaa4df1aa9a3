"""Loads the service with ten times its capacity, and checks the promises about overload.

    python -m benchmarks.soak [--model fake:0.1] [--seconds 120]

benchmarks/README.md explains the promises and the measurements. Exit code 1: a promise is missed.
"""

import argparse
import asyncio
import bisect
import datetime as dt
import gc
import itertools
import os
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.soak import report as soak_report
from benchmarks.soak.load import (
    GATEWAY_TIMEOUT,
    INTERNAL_ERROR,
    OK,
    TOO_MANY_REQUESTS,
    Client,
    Outcome,
    Request,
    closed_loop,
    make_requests,
    poisson,
    right,
    wrong,
)
from benchmarks.soak.report import Part, Promise, at_most_ms, none_of, share_of, spread
from benchmarks.soak.service import MemoryWatch, Service
from benchmarks.support import process_tree
from benchmarks.support.contestants import ROOT
from benchmarks.support.load import Probe

_OVERLOAD = 10
"""The load, as a multiple of the capacity."""

_SIDE = 128
_REQUESTS = 32
_CAPACITY_CLIENTS, _CAPACITY_S = 8, 10
_DEADLINE_S = 60
_SHORT_DEADLINE_S = 2
"""Shorter than the time for `TURBO_MAX_QUEUE` requests."""

_LATE_S = 0.25
"""The time that an answer may take after the deadline to reach the client."""

_SETTLED_S = 30
"""Growth of memory before this time is allowed."""

_HONEST_S, _HONEST_SHARE = 1.5, 0.25
"""The allowed error of Retry-After in seconds and as a share; the larger counts. The header has whole seconds."""

_RECOVERY_CLIENTS, _RECOVERY_S = 16, 10
_RETRIES = 5
_NOT_THE_PICTURE = "answers other than the requested picture"

Pictures = Mapping[Request, bytes]


@dataclass(frozen=True, slots=True)
class _Soak:
    """One run: the model, the duration and the requests."""

    model: str
    seconds: float
    requests: Sequence[Request]

    async def run(self) -> list[Part]:
        async with self._service() as service:
            pictures = await self._make_alone(service)
            capacity, part = await self._measure_capacity(service, pictures)
            parts = [part, await self._overload(service, pictures, capacity, _DEADLINE_S, self.seconds)]
        async with self._service(TURBO_DEADLINE_S=str(_SHORT_DEADLINE_S)) as service:
            await self._measure_capacity(service, pictures)  # the service learns its call times
            parts.append(await self._overload(service, pictures, capacity, _SHORT_DEADLINE_S, self.seconds / 4))
        parts.append(await self._share(pictures, capacity))
        async with self._service(TURBO_BATCHING="off") as service:  # counts of pictures in eights are too coarse
            parts.append(await self._recover(service, pictures))
        return parts

    def _service(self, **settings: str) -> AbstractAsyncContextManager[Service]:
        size = f"{_SIDE}x{_SIDE}"
        return Service({"TURBO_MODEL": self.model, "TURBO_WARM_UP_SIZES": size, **settings}).run()

    async def _make_alone(self, service: Service) -> Pictures:
        """Request each picture while the service is idle."""
        _say("pictures alone")
        client = Client(service.port)
        answers = [await client.ask(request) for request in self.requests]
        client.close()
        if bad := [answer for answer in answers if answer.status != OK]:
            sys.exit(f"The service does not make the pictures: {bad[0].status} {bad[0].body[:500]!r}")
        assert len({answer.body for answer in answers}) == len(answers), "all pictures must differ"
        return {answer.request: answer.body for answer in answers}

    async def _measure_capacity(self, service: Service, pictures: Pictures) -> tuple[float, Part]:
        """Measure pictures per second with a few clients that wait for their answers."""
        _say("capacity")
        began = time.perf_counter()
        end_at = began + min(_CAPACITY_S, self.seconds)
        outcomes = await closed_loop(
            service.port,
            itertools.cycle(self.requests),
            clients=_CAPACITY_CLIENTS,
            until=lambda: time.perf_counter() > end_at,
        )
        capacity = len(right(outcomes, pictures)) / (max(outcome.done_at for outcome in outcomes) - began)
        facts = {"capacity": f"{capacity:.2f} pictures per second, with {_CAPACITY_CLIENTS} clients"}
        return capacity, Part("Capacity", [none_of(_NOT_THE_PICTURE, wrong(outcomes, pictures))], facts)

    async def _overload(
        self, service: Service, pictures: Pictures, capacity: float, deadline_s: float, seconds: float
    ) -> Part:
        """Send ten times as many requests as the capacity."""
        _say(f"overload, deadline {deadline_s} s")
        run_delays_s = partial(_run_delays_s, service)
        probes = [Probe(service.port, path, run_delays_s) for path in ("/healthz/live", "/healthz/ready")]
        memory = MemoryWatch(service.pid)
        client = Client(service.port, run_delays_s=run_delays_s)
        cpu_s, own_cpu_s, began = process_tree.cpu_seconds(service.pid), time.process_time(), time.perf_counter()
        probing = [asyncio.create_task(probe.run()) for probe in probes]
        watching = asyncio.create_task(memory.run())
        outcomes = await client.ask_openly(
            itertools.cycle(self.requests), poisson(_OVERLOAD * capacity), seconds=seconds
        )
        took_s = time.perf_counter() - began
        cpu_s, own_cpu_s = process_tree.cpu_seconds(service.pid) - cpu_s, time.process_time() - own_cpu_s
        unhealthy = sum(task.done() for task in probing) + sum(probe.failures for probe in probes)
        for task in (*probing, watching):
            task.cancel()
        await asyncio.gather(*probing, watching, return_exceptions=True)
        client.close()
        goodput = sum(outcome.done_at <= began + seconds for outcome in right(outcomes, pictures)) / seconds
        probe_s = [latency for probe in probes for latency in probe.net_latencies_s]
        growth = memory.growth(min(_SETTLED_S, seconds / 4))
        return Part(
            f"{_OVERLOAD} times capacity for {seconds:g} s, deadline {deadline_s} s",
            [
                share_of("goodput relative to capacity", goodput / capacity, 0.95),
                none_of(_NOT_THE_PICTURE, wrong(outcomes, pictures)),
                *_refusal_promises(outcomes),
                none_of("accepted requests without an answer by the deadline", _late(outcomes, deadline_s)),
                at_most_ms("the longest health check", probe_s, 1, 0.05),
                none_of("failed health checks", unhealthy),
                none_of("500 or no answer", _failures(outcomes)),
                *([] if growth is None else [share_of("growth of memory", growth, 0.02, at_least=False)]),
            ],
            {
                "goodput": f"{goodput:.2f} pictures per second",
                **_answer_facts(outcomes, seconds),
                "health checks": spread([latency for probe in probes for latency in probe.latencies_s]),
                "health checks, net": spread(probe_s),
                "memory": memory.told(),
                "CPU": f"service {cpu_s / took_s:.0%} of a core, load generator {own_cpu_s / took_s:.0%}",
            },
        )

    async def _share(self, pictures: Pictures, capacity: float) -> Part:
        """Load the service with a greedy and a polite client, each limited to half of the capacity."""
        _say("fairness")
        amount, seconds = max(1, int(capacity / 2)), self.seconds / 4
        requests = itertools.cycle(self.requests)
        keys = [secrets.token_hex(16) for _ in range(2)]
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
            file.write("greedy: {}\npolite: {}\n".format(*keys))
            file.flush()
            settings = {"TURBO_API_KEYS_FILE": file.name, "TURBO_RATE_LIMIT": f"{amount}/second"}
            async with self._service(**settings) as service:
                run_delays_s = partial(_run_delays_s, service)
                greedy, polite = (Client(service.port, key=key, run_delays_s=run_delays_s) for key in keys)
                grabbed, asked = await asyncio.gather(
                    greedy.ask_openly(requests, poisson(_OVERLOAD * capacity), seconds=seconds),
                    polite.ask_openly(requests, itertools.repeat(3 / capacity), seconds=seconds),
                )
                came_back = [await _come_back(greedy, requests, 4 * amount) for _ in range(_RETRIES)]
                greedy.close()
                polite.close()
        refused = [outcome for outcome in grabbed if outcome.status != OK]
        limited = [outcome for outcome in refused if _is_limited(outcome)]
        return Part(
            f"A greedy client at {_OVERLOAD} times capacity and a polite client at a third of capacity, "
            f"for {seconds:g} s",
            [
                share_of(
                    "the polite client's pictures, relative to its requests",
                    len(right(asked, pictures)) / len(asked),
                    0.99,
                ),
                none_of("the greedy client's rejections other than 429 `rate_limited`", len(refused) - len(limited)),
                _quick("time to a 429 `rate_limited`, p99", limited),
                share_of("the greedy client's requests accepted after `Retry-After`", sum(came_back) / _RETRIES, 1),
                none_of(_NOT_THE_PICTURE, wrong([*grabbed, *asked], pictures)),
                none_of("500 or no answer", _failures([*grabbed, *asked])),
            ],
            {
                "TURBO_RATE_LIMIT": f"{amount}/second",
                "the greedy client": f"{len(grabbed) - len(refused)} pictures, {len(refused)} rejections",
                "the polite client": f"{len(asked)} requests, answer times {spread([one.latency_s for one in asked])}",
                "429 `rate_limited`": spread([outcome.latency_s for outcome in limited]),
            },
        )

    async def _recover(self, service: Service, pictures: Pictures) -> Part:
        """Kill the service under load, and measure its recovery."""
        _say("recovery")
        over = asyncio.Event()
        asking = asyncio.create_task(
            closed_loop(service.port, itertools.cycle(self.requests), clients=_RECOVERY_CLIENTS, until=over.is_set)
        )
        await asyncio.sleep(1 + _RECOVERY_S)
        killed_at, pid = time.perf_counter(), service.pid
        os.kill(pid, signal.SIGKILL)
        await service.until_replaced(pid)
        ready_at = time.perf_counter()
        await asyncio.sleep(_RECOVERY_S)
        over.set()
        outcomes = await asking
        done_at = [outcome.done_at for outcome in right(outcomes, pictures)]
        before = sum(killed_at - _RECOVERY_S < at <= killed_at for at in done_at)
        after = sum(ready_at < at <= ready_at + _RECOVERY_S for at in done_at)
        first_s = min(at for at in done_at if at > ready_at) - ready_at
        return Part(
            f"Killed (SIGKILL) under {_RECOVERY_CLIENTS} clients, and started again",
            [
                share_of(f"goodput in {_RECOVERY_S} s from ready on, relative to before", after / before, 0.95),
                none_of(_NOT_THE_PICTURE, wrong(outcomes, pictures)),
                none_of("answers that are errors", sum(outcome.status not in (0, OK) for outcome in outcomes)),
            ],
            {
                "times": f"ready {ready_at - killed_at:.1f} s after the kill, the first picture {first_s:.2f} s later",
                "pictures": f"{before} before, {after} after",
                "requests that the kill broke or that found no server": str(sum(one.status == 0 for one in outcomes)),
            },
        )


def _refusal_promises(outcomes: Sequence[Outcome]) -> Iterator[Promise]:
    refused = [outcome for outcome in outcomes if outcome.status not in (OK, GATEWAY_TIMEOUT)]
    told = [one for one in refused if one.status == TOO_MANY_REQUESTS and one.retry_after_s is not None]
    yield none_of("rejections other than 429 with `Retry-After`", len(refused) - len(told))
    if told:
        yield _quick("time to a 429, p99", told)
    if errors := _retry_after_errors(outcomes):
        honest = sum(abs(error_s) <= max(_HONEST_S, _HONEST_SHARE * wait_s) for error_s, wait_s in errors)
        yield share_of("accurate `Retry-After`", honest / len(errors), 0.99)


def _quick(text: str, refused: Sequence[Outcome]) -> Promise:
    return at_most_ms(text, [outcome.latency_s - outcome.kept_back_s for outcome in refused], 0.99, 0.02)


def _retry_after_errors(outcomes: Sequence[Outcome]) -> list[tuple[float, float]]:
    """Return the error of each Retry-After in seconds, and the actual wait for the requests accepted before it."""
    accepted = [outcome for outcome in outcomes if outcome.status in (OK, GATEWAY_TIMEOUT)]
    accepted.sort(key=lambda outcome: outcome.sent_at)
    sent_at = [outcome.sent_at for outcome in accepted]
    all_done_at = list(itertools.accumulate((outcome.done_at for outcome in accepted), max))
    found = []
    for outcome in outcomes:
        before = bisect.bisect_left(sent_at, outcome.sent_at)
        if outcome.status == TOO_MANY_REQUESTS and outcome.retry_after_s is not None and before:
            wait_s = all_done_at[before - 1] - outcome.done_at
            found.append((outcome.retry_after_s - wait_s, wait_s))
    return found


def _answer_facts(outcomes: Sequence[Outcome], seconds: float) -> dict[str, str]:
    counts = sorted(Counter(outcome.status for outcome in outcomes).items())
    accepted = [outcome for outcome in outcomes if outcome.status in (OK, GATEWAY_TIMEOUT)]
    refused = [outcome for outcome in outcomes if outcome.status == TOO_MANY_REQUESTS]
    return {
        "requests": f"{len(outcomes)}, {len(outcomes) / seconds:.1f} per second",
        "answers": ", ".join(f"{count} with {status}" for status, count in counts),
        "accepted, from sending": spread([outcome.latency_s for outcome in accepted]),
        "429, from the planned moment": spread([outcome.done_at - outcome.due_at for outcome in refused]),
        "429, from sending": spread([outcome.latency_s for outcome in refused]),
        "429, from sending, net": spread([outcome.latency_s - outcome.kept_back_s for outcome in refused]),
        "`Retry-After`": spread([float(outcome.retry_after_s or 0) for outcome in refused], "s"),
        "`Retry-After`, error": spread([abs(error_s) for error_s, _ in _retry_after_errors(outcomes)], "s"),
    }


def _late(outcomes: Sequence[Outcome], deadline_s: float) -> int:
    limit_s = deadline_s + _LATE_S
    accepted = [outcome for outcome in outcomes if outcome.status in (OK, GATEWAY_TIMEOUT)]
    return sum(outcome.latency_s - outcome.kept_back_s > limit_s for outcome in accepted)


def _failures(outcomes: Sequence[Outcome]) -> int:
    return sum(
        outcome.status == 0 or (outcome.status >= INTERNAL_ERROR and outcome.status != GATEWAY_TIMEOUT)
        for outcome in outcomes
    )


def _is_limited(outcome: Outcome) -> bool:
    told = outcome.retry_after_s is not None and b'"code":"rate_limited"' in outcome.body
    return outcome.status == TOO_MANY_REQUESTS and told


async def _come_back(client: Client, requests: Iterator[Request], burst: int) -> bool:
    """Exceed the rate limit, wait for the last Retry-After, and return whether the next request is accepted."""
    outcomes = await asyncio.gather(*(client.ask(next(requests)) for _ in range(burst)))
    again_at = max(outcome.done_at + outcome.retry_after_s for outcome in outcomes if outcome.retry_after_s)
    await asyncio.sleep(again_at - time.perf_counter())
    return (await client.ask(next(requests))).status == OK


def _run_delays_s(service: Service) -> tuple[float, ...]:
    return process_tree.run_delay_s(service.pid), process_tree.run_delay_s(os.getpid())


def _say(what: str) -> None:
    print(f"{dt.datetime.now().astimezone():%H:%M:%S}  {what}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--model", default="fake:0.1", help="the service's TURBO_MODEL (fake:0.1)")
    parser.add_argument(
        "--seconds", type=float, default=120, help="duration of the overload; other parts run a quarter of it (120)"
    )
    parser.add_argument(
        "--out", type=Path, help="file to write (benchmarks/SOAK.md; build/bench/SOAK.md with other options)"
    )
    options = parser.parse_args()
    usual = all(getattr(options, name) == parser.get_default(name) for name in ("model", "seconds"))
    options.out = options.out or (ROOT / ("benchmarks" if usual else "build/bench") / "SOAK.md")
    return options


def main() -> None:
    """Run the soak, print the tables, and write them."""
    options = _options()
    load_average = os.getloadavg()[0]
    gc.disable()  # a pause of the load generator would count as the service's
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs `finally`, which stops the service
    parts = asyncio.run(_Soak(options.model, options.seconds, make_requests(_REQUESTS, _SIDE)).run())
    shown = {"model": options.model, "size": f"{_SIDE}x{_SIDE}", "seconds": f"{options.seconds:g}"}
    text = soak_report.write(parts, load_average=load_average, **shown)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)
    _say(f"written to {options.out}")
    sys.exit(not all(promise.kept for part in parts for promise in part.promises))


if __name__ == "__main__":
    main()
