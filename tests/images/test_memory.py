import subprocess
import sys

import pytest

_CODE = """
import resource, sys
if limit := int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from app.images.memory import waiting_array
def anonymous_kb():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
before = anonymous_kb()
array = waiting_array((4096, 4096, 3))
assert not array.any()
array[:] = 7
assert array.sum(dtype=int) == 7 * array.size
print(anonymous_kb() - before)
"""


def anonymous_kb(largest_file: int = 0) -> int:
    """Anonymous memory, in KB, that an array of 48 MB takes if files may have so many bytes; 0 is no limit."""
    command = [sys.executable, "-c", _CODE, str(largest_file)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_pixels_that_wait_are_in_a_file_that_the_system_can_evict() -> None:
    assert anonymous_kb() < 8_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_without_room_for_a_file_they_are_in_memory() -> None:
    assert anonymous_kb(1 << 20) > 40_000
