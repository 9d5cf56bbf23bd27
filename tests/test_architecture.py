"""The rules of the house that a machine can check: imports go one way, functions and files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "tramontane").rglob("*.py"))
LONGEST_FUNCTION = 80
LONGEST_FILE = 700


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--config", "pyproject.toml"]
    checked = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT / "src")))
def test_files_and_functions_are_of_a_size_to_be_read(source: Path) -> None:
    text = source.read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines"


def test_no_file_is_a_drawer_for_what_has_no_name() -> None:
    drawers = {"utils", "util", "common", "misc", "base", "manager", "handler", "helpers", "data", "info"}
    assert not drawers & {source.stem for source in SOURCES}


def test_every_file_begins_by_saying_what_it_is() -> None:
    silent = [source.name for source in SOURCES if not ast.get_docstring(ast.parse(source.read_text("utf-8")))]
    assert silent in ([], ["__main__.py"])


def test_statements_of_the_store_are_each_used_and_each_there() -> None:
    from tramontane.store.statements import Statements

    for module in sorted((ROOT / "src" / "tramontane" / "store").glob("*.sql")):
        tree = ast.parse(module.with_suffix(".py").read_text("utf-8"))
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "SQL"
        }
        assert used == set(Statements(module.stem)._blocks)
