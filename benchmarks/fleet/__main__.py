"""Simulates a fleet of replicas.

    .venv/bin/python -m benchmarks.fleet reality      # against real processes behind HAProxy, about four minutes

benchmarks/README.md explains the simulation.
"""

import argparse
import sys

from benchmarks.fleet import reality


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"reality": reality.main, "compare": reality.show}
    parser.add_argument("command", choices=commands)
    return commands[parser.parse_args().command]()


if __name__ == "__main__":
    sys.exit(_main())
