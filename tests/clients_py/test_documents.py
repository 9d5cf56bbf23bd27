"""What the documents show of the Python client works."""

import ast
import asyncio
import re
import sys
from inspect import isawaitable
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from holding import engine, served

from tramontane.simulator import Simulator

ROOT = Path(__file__).parents[2]


async def run(code: str, names: dict[str, Any]) -> None:
    """A block of a document: with `await` in it as in a notebook, else as a program."""
    compiled = compile(code, "document", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = await asyncio.to_thread(FunctionType(compiled, names))
    if isawaitable(running):
        await running


@pytest.mark.parametrize(("name", "fence", "blocks"), [("docs/clients.md", "python", 3), ("README.md", "py", 1)])
async def test_the_python_of_the_documents_runs(
    name: str, fence: str, blocks: int, simulator: Simulator, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.findall(rf"```{fence}\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)
    assert len(found) == blocks
    names: dict[str, Any] = {"__name__": "document"}
    async with served(**engine(simulator, database_url)) as url:
        for block in found:
            assert "http://localhost:8787" in block
            await run(block.replace("http://localhost:8787", url), names)
    assert names["result"].content in capsys.readouterr().out


async def test_the_example_answers_a_file_of_prompts(simulator: Simulator, database_url: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Say: one\n\nSay: two\n")
    async with served(**engine(simulator, database_url)) as url:
        for _ in range(2):
            program = await asyncio.create_subprocess_exec(
                *(sys.executable, str(ROOT / "examples/answers.py"), str(prompts), url), stdout=asyncio.subprocess.PIPE
            )
            said, _ = await program.communicate()
            assert said == b"Say: one\n  one\n\nSay: two\n  two\n\n"
    assert simulator.totals().calls == 2
