"""SQL in files: each module of the store has one beside it, in blocks that begin with `-- name: verb`."""

import re
from importlib.resources import files

_BLOCK = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


class Statements:
    """The named blocks of one file as attributes."""

    def __init__(self, name: str) -> None:
        text = files("tramontane.store").joinpath(f"{name}.sql").read_text("utf-8")
        _, *parts = _BLOCK.split(text)
        self._blocks = dict(zip(parts[::2], parts[1::2], strict=True))

    def __getattr__(self, name: str) -> str:
        try:
            return self._blocks[name]
        except KeyError:
            raise AttributeError(name) from None
