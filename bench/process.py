"""What a stranger's machine feels: memory of an idle `serve`, and the time of a demo."""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path


async def run() -> dict[str, float]:
    """Megabytes of an idle `tramontane serve`, its Postgres apart, and seconds of the demo's second run."""
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        os.chmod(directory, 0o711)  # as root, Postgres runs under another account
        return {"idle serve MB": await _idle(f"{directory}/serve")} | await _demo(f"{directory}/demo")


async def _idle(data_dir: str) -> float:
    arguments = ("serve", "--simulator", "--port", "0", "--data-dir", data_dir)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tramontane",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    while not Path(data_dir, "server.json").exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.05)
    await asyncio.sleep(2)
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()  # noqa: ASYNC240
    process.terminate()
    await process.communicate()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


async def _demo(data_dir: str) -> dict[str, float]:
    seconds = {}
    for run in ("first", "second"):
        arguments = ("batch", "examples/prompts.txt", "--live", "--simulator", "--data-dir", data_dir)
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tramontane", *arguments, stdout=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0
        seconds[f"{run} demo on a data directory, s"] = time.perf_counter() - began
    return seconds


if __name__ == "__main__":
    for name, value in asyncio.run(run()).items():
        print(f"{name:40} {value:10.2f}")
