"""`tramontane db …`: the database."""

from collections.abc import Callable
from typing import Final

from tramontane import telemetry
from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json, settings_from
from tramontane.cli.signals import run
from tramontane.settings import Settings


def migrate(data_dir: DataDir = None, json: Json = False) -> int:
    """Bring the database to this version's tables. `serve` and the others do so by themselves."""
    settings = settings_from(data_dir=data_dir)
    telemetry.configure("warning")
    describe, applied = run(lambda _: _migrate(settings))
    if json:
        screen.show_json({"database": describe, "applied": applied})
    else:
        screen.say(f"{describe}: {'applied ' + ', '.join(applied) if applied else 'nothing to apply'}")
    return exits.OK


async def _migrate(settings: Settings) -> tuple[str, list[str]]:
    with screen.waiting("migrating"):
        from tramontane.database import open_database
        from tramontane.store import prepare

        async with open_database(settings, connections=2) as database:
            return database.describe, await prepare(database)


COMMANDS: Final[dict[str, Callable[..., int]]] = {"migrate": migrate}
