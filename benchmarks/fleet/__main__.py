"""Simulates a fleet of replicas, and holds the simulation against real processes.

    .venv/bin/python -m benchmarks.fleet reality        # against real processes behind HAProxy, about four minutes
    .venv/bin/python -m benchmarks.fleet autoscaling    # rules of autoscaling, in a day of 24 hours
    .venv/bin/python -m benchmarks.fleet failures       # failures, in the simulation and with real processes

benchmarks/README.md explains them. `autoscaling NAME...` tries only rules and worlds with these names again.
"""

import argparse
import itertools
import sys

from benchmarks.fleet import failing, for_real, reality, report


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("reality", "autoscaling", "failures"))
    parser.add_argument("names", nargs="*", help="rules and worlds of `autoscaling`; all if there are none")
    options = parser.parse_args()
    if options.command == "reality":
        return reality.main()
    if options.command == "autoscaling":
        report.measure(options.names)
        report.draw()
        print("\n".join(report.tables()))
    else:
        for line in itertools.chain(failing.table(), for_real.table()):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
