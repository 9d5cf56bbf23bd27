import subprocess
import sys

import pytest

import tramontane


def test_every_public_name_is_there_and_listed() -> None:
    assert dir(tramontane) == sorted(tramontane.__all__)
    for name in tramontane.__all__:
        assert getattr(tramontane, name) is not None


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Mistral'"):
        tramontane.Mistral  # noqa: B018


def test_importing_the_package_alone_loads_nothing_heavy() -> None:
    heavy = {"aiohttp", "asyncpg", "fastapi", "msgspec", "pgqueuer", "rich", "typer", "uvicorn", "asyncio"}
    code = f"import sys, tramontane; print(*sorted({heavy!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
