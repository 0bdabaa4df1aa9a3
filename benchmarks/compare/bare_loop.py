"""The control: an event loop that only answers probes, with the same measurement of its lag.

    python -m benchmarks.compare.bare_loop PORT LAG_FILE

Its lag under the same load comes from the machine, not from the service.
"""

import asyncio
import sys
from pathlib import Path

from benchmarks.support.loop_lag import LagRecorder


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except asyncio.IncompleteReadError:
        writer.close()


async def _main() -> None:
    async with await asyncio.start_server(_answer, "127.0.0.1", int(sys.argv[1])):
        await LagRecorder(Path(sys.argv[2])).run()


if __name__ == "__main__":
    asyncio.run(_main())
