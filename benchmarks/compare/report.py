"""Writes the section of the nano scope: the tables, and the verdict on each target."""

from collections.abc import Callable, Iterator

from benchmarks.compare.reactions import CONTROL
from benchmarks.compare.results import SCENARIOS, Key, Measurement, Results
from benchmarks.compare.sections import NONE, Target, head, opening, over, table, target_table
from benchmarks.support.contestants import CONTESTANTS

_TITLES = {contestant.key: contestant.title for contestant in CONTESTANTS}
_SERVERS = ("plain", "litserve", "bentoml", "ray")
"""The peers with an HTTP server. The best peer is one of these."""


def targets(results: Results, ours: str = "ours") -> list[Target]:
    """Return the targets with the service's measured values."""

    def ratio(scenario: str, peer: str) -> float | None:
        return results.cpu_ratio(ours, peer, scenario)

    def gain(scenario: str, peer: str | None) -> float | None:
        return results.cpu_ratio(peer, ours, scenario)

    best_small, best_large = _best(results, Key.SMALL_EIGHT), _best(results, Key.LARGE_EIGHT)
    memory = over(results.memory_bytes(ours), results.memory_bytes("plain"))
    reactions = [found for found in results.reactions if found.server == ours]
    p99 = max((found.p99_s for found in reactions), default=None)
    stall = max((found.net_lag_max_s for found in reactions), default=None)
    eight_to_one = over(results.cpu_s(ours, Key.LARGE_EIGHT), results.cpu_s(ours, Key.LARGE_FRESH))
    cpu = "CPU time per image"
    return [
        Target(f"512 px, one client, one prompt: {cpu} relative to plain", ratio(Key.LARGE_KEPT, "plain"), 0.68, True),
        Target(
            f"512 px, one client, one prompt: {cpu} relative to OpenVINO GenAI",
            ratio(Key.LARGE_KEPT, "openvino"),
            0.95,
            True,
        ),
        Target(f"128 px, one client: {cpu} relative to plain", ratio(Key.SMALL_ONE, "plain"), 0.55, True),
        Target(
            f"128 px, eight clients: images per CPU time relative to the best peer{_named(results, best_small)}",
            gain(Key.SMALL_EIGHT, best_small),
            1.5,
            False,
        ),
        Target(
            "128 px, eight clients: images per CPU time relative to plain", gain(Key.SMALL_EIGHT, "plain"), 3, False
        ),
        Target(f"512 px: {cpu}, eight clients relative to one, fresh prompts", eight_to_one, 1.0, True),
        Target(
            f"512 px, eight clients: images per CPU time relative to the best peer{_named(results, best_large)}",
            gain(Key.LARGE_EIGHT, best_large),
            1.35,
            False,
        ),
        Target("health probes under load, p99 in ms", p99 and p99 * 1000, 10, True),
        Target("longest stall of the event loop under load, net, in ms", stall and stall * 1000, 5, True),
        Target("peak memory relative to plain", memory, 1.1, True),
        Target(
            "time until ready relative to the bare pipeline",
            over(results.ready_s(ours), results.ready_s("bare")),
            1.2,
            True,
        ),
    ]


def write(results: Results) -> str:
    """Return the section."""
    return "\n".join(_lines(results))


def _lines(results: Results) -> Iterator[str]:
    yield from opening(results)
    yield ""
    yield from _cpu_section(results)
    yield from _latency_section(results)
    yield from _whole_section(results)
    yield from _reaction_section(results)
    yield from _target_section(results)
    yield from _check_section(results)
    yield from _version_section(results)


def _cpu_section(results: Results) -> Iterator[str]:
    yield from head(
        "CPU-milliseconds for each image",
        "CPU time of the whole process tree: the median of the rounds, and in brackets the lowest and the highest.",
        "Lower is better.",
    )
    yield from table(
        ["", *(scenario.title for scenario in SCENARIOS)],
        [
            [_TITLES[server], *(_cost(results, server, scenario.key) for scenario in SCENARIOS)]
            for server in _measured(results)
        ],
    )
    yield from (
        f"{_TITLES.get(server, server)} was not measured: {reason}." for server, reason in results.not_measured.items()
    )
    yield ""
    yield "![CPU-milliseconds for each image](plots/cpu.svg)"
    yield ""


def _latency_section(results: Results) -> Iterator[str]:
    def cell(server: str, scenario: str, rate: float | None) -> str:
        if rate is None:
            return NONE
        p50, p99 = (_ms(results.latency_s(server, scenario, share)) for share in (0.5, 0.99))
        return f"{rate:.1f}; {p50}, {p99}"

    def cells(server: str) -> Iterator[str]:
        for scenario in SCENARIOS:
            yield cell(server, scenario.key, results.images_per_s(server, scenario.key))
        rounds = results.of(server, Key.OPEN)
        yield cell(server, Key.OPEN, rounds[0].per_second if rounds else None)

    yield from head(
        "Images per second; latency p50, p99 in ms",
        "Wall-clock figures, which other load on the machine affects. The last column is an open loop with random",
        "arrivals, at 70 % of the server's own rate with eight clients; its first figure is that rate.",
    )
    yield from table(
        ["", *(scenario.title for scenario in SCENARIOS), "128 px, open loop"],
        [[_TITLES[server], *cells(server)] for server in _measured(results)],
    )
    yield "![Latency under load](plots/latency.svg)"
    yield ""


def _whole_section(results: Results) -> Iterator[str]:
    yield from head(
        "Memory, start, and same bytes",
        "Memory is the peak of the tree's proportional set size under eight clients, while no other server runs.",
        "Same bytes: eight different requests are sent at once; the column counts the answers that are byte-identical",
        "to those of the same requests sent alone. If some differ, it adds the largest difference of a channel.",
    )
    alone = {found.server: found for found in results.alone}
    rows = []
    for server in ("bare", *_measured(results)):
        found = alone.get(server)
        same = NONE
        if found and found.compared:
            off = f", off by {found.largest_difference}/255" if found.identical < found.compared else ""
            same = f"{found.identical} of {found.compared}{off}"
        first = [start.first_picture_s for start in results.starts if start.server == server]
        rows.append(
            [
                _TITLES.get(server, "bare pipeline"),
                f"{found.peak_pss_bytes / 2**20:.0f}" if found else NONE,
                str(found.processes) if found else NONE,
                _s(results.ready_s(server)),
                _s(sorted(first)[len(first) // 2] if first else None),
                _s(results.start_cpu_s(server)),
                same,
            ]
        )
    yield from table(
        ["", "memory in MiB", "processes", "ready after s", "first picture after s", "CPU-s of start-up", "same bytes"],
        rows,
    )


def _reaction_section(results: Results) -> Iterator[str]:
    yield from head(
        "Reactions under load",
        "In ms, with eight clients. Probes go to `/healthz/live` and `/healthz/ready` every 20 ms. A stall is the time",
        "by which a 5 ms sleep on the event loop was too long; net leaves out the wait for a free core. The bare event",
        "loop, an idle process beside the service, shows the share of the machine itself.",
    )
    yield from table(
        ["", "size", "probes, failed", "probe p99", "max", "stall p99, raw", "max, raw", "p99, net", "max, net"],
        [
            [
                _TITLES.get(found.server, found.server),
                str(found.side),
                f"{found.probes}, {found.failures}",
                *(
                    f"{1000 * seconds:.1f}"
                    for seconds in (
                        found.p99_s,
                        found.max_s,
                        found.raw_lag_p99_s,
                        found.raw_lag_max_s,
                        found.net_lag_p99_s,
                        found.net_lag_max_s,
                    )
                ),
            ]
            for found in sorted(
                results.reactions, key=lambda found: (found.server == CONTROL, found.server, found.side)
            )
        ],
    )


def _target_section(results: Results) -> Iterator[str]:
    yield from head(
        "Targets",
        "A ratio of CPU times is the median of each round's ratio. Only servers count as the best peer.",
    )
    for ours in [server for server in _measured(results) if server.startswith("ours")]:
        yield f"{_TITLES[ours][0].upper()}{_TITLES[ours][1:]}:"
        yield ""
        yield from target_table(targets(results, ours))


def _check_section(results: Results) -> Iterator[str]:
    yield from head(
        "The answers",
        "Every answer was decoded and compared with the picture of diffusers' own pipeline for its prompt and seed:",
        "equal in every pixel, within 1/255 in every channel, or bad. OpenVINO's pictures stay in memory and were not",
        "compared.",
    )
    servers = [server for server in _measured(results) if server != "openvino"]
    rows = []
    for server in servers:
        rounds = [m for m in results.measurements if m.server == server]
        bad = [reason for m in rounds for reason in m.bad]
        bad += [reason for found in results.alone if found.server == server for reason in found.bad]
        counts = [sum(_count(m) for m in rounds) for _count in _COUNTS]
        rows.append([_TITLES[server], *map(str, counts), f"{len(bad)}{': ' + bad[0] if bad else ''}"])
    yield from table(["", "equal", "within 1/255", "bad"], rows)


_COUNTS: tuple[Callable[[Measurement], int], ...] = (lambda m: m.exact, lambda m: m.near)


def _version_section(results: Results) -> Iterator[str]:
    yield "### Versions"
    yield ""
    for server, found in results.versions.items():
        yield f"- {_TITLES[server]}: {', '.join(f'{name} {version}' for name, version in found.items())}"


def _measured(results: Results) -> list[str]:
    servers = {m.server for m in results.measurements}
    return [contestant.key for contestant in CONTESTANTS if contestant.key in servers]


def _best(results: Results, scenario: str) -> str | None:
    costs = {server: cost for server in _SERVERS if (cost := results.cpu_s(server, scenario))}
    return min(costs, key=lambda server: costs[server]) if costs else None


def _cost(results: Results, server: str, scenario: str) -> str:
    extremes = results.cpu_range_s(server, scenario)
    if extremes is None:
        return NONE
    if len(results.of(server, scenario)) == 1:
        return _ms(extremes[0])
    return f"{_ms(results.cpu_s(server, scenario))} ({_ms(extremes[0])} to {_ms(extremes[1])})"


def _named(results: Results, server: str | None) -> str:
    missing = [_TITLES[other] for other in _SERVERS if other not in _measured(results)]
    without = f"; not measured: {', '.join(missing)}" if missing else ""
    return f" ({_TITLES[server]}{without})" if server else ""


def _ms(seconds: float | None) -> str:
    return NONE if seconds is None else f"{1000 * seconds:.0f}"


def _s(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds:.1f}"
