"""What the documents say is true: their Python runs, and no error code, route, command or variable is missing."""

import ast
import re
from collections.abc import Iterator
from inspect import isawaitable
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING

import pytest

from tramontane import errors
from tramontane.api import limits_routes, operations_routes, routes, webhook_history, webhook_routes
from tramontane.cli.program import program

if TYPE_CHECKING:
    from tramontane.simulator import Simulator

ROOT = Path(__file__).parents[1]
ROUTERS = (limits_routes.router, operations_routes.router, routes.router, webhook_routes.router, webhook_history.router)
PATHS = sorted({route.path for router in ROUTERS for route in router.routes})  # type: ignore[attr-defined]
README = (ROOT / "README.md").read_text("utf-8")


def codes(kind: type[errors.TramontaneError]) -> Iterator[str]:
    yield kind.code
    for special in kind.__subclasses__():
        yield from codes(special)


async def test_the_python_of_the_readme_runs(
    simulator: "Simulator", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MISTRAL_SERVER_URL", simulator.url)
    monkeypatch.setenv("MISTRAL_API_KEY", "key")
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    code = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = FunctionType(code, names)()
    assert isawaitable(running)
    await running
    assert names["text"] == capsys.readouterr().out
    assert len(names["answers"]) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("code", sorted(set(codes(errors.TramontaneError))))
def test_every_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in (ROOT / "docs/errors.md").read_text("utf-8")


@pytest.mark.parametrize("path", PATHS)
def test_every_route_is_documented(path: str) -> None:
    assert re.sub(r"{\w+_id}", "{id}", path) in (ROOT / "docs/http.md").read_text("utf-8")


def test_every_command_is_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    tree = program()
    names = [command.callback.__name__ for command in tree.registered_commands if command.callback]
    names += [group.name for group in tree.registered_groups if group.name]
    assert [name for name in names if name not in text and name != "version"] == []


def test_the_project_names_no_registry_in_its_locks() -> None:
    npm = ("tests/sdk/package-lock.json", "tests/clients_js/package-lock.json")
    for name in ("requirements.lock", "requirements-dev.lock", *npm):
        text = (ROOT / name).read_text("utf-8")
        assert not re.search(r"registry|pypi|\"resolved\"|--(extra-)?index-url|--find-links", text), name
