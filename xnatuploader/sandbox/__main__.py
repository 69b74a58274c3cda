"""The sandbox as a process of its own: options in one JSON line on stdin, its URL in one on stdout.

It ends when stdin does, so that it never outlives the process that started it, however that ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading

from xnatuploader.sandbox import app, options


def main(around: app.Around = app.plainly) -> int:
    """Run until stdin is closed; `around` may answer in place of the sandbox."""
    chosen = options.SandboxOptions.from_json(sys.stdin.readline())
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(chosen, around))
    return 0


async def _run(chosen: options.SandboxOptions, around: app.Around) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def watch() -> None:
        while sys.stdin.readline() not in ("", "stop\n"):
            pass
        loop.call_soon_threadsafe(stop.set)

    def ready(url: str) -> None:
        print(json.dumps({"url": url}), flush=True)

    threading.Thread(target=watch, daemon=True).start()
    await app.serve(chosen, ready, stop, around)


if __name__ == "__main__":
    sys.exit(main())
