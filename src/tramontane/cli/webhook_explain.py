"""`tramontane webhooks explain`: where webhooks may go."""

from typing import Annotated, Any

import typer

from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json
from tramontane.cli.reach import Reached, with_server
from tramontane.webhook_client import WebhookClient


def explain(
    url: Annotated[str, typer.Argument(metavar="URL", help="where a webhook might go")],
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Say whether webhooks may go to an address, by which rule, and what would change that. Nothing is sent."""

    async def ask(reached: Reached) -> int:
        explained = await WebhookClient(reached.client).explain(url)
        screen.show_json(explained) if json else _show_explained(explained)
        return exits.OK if explained["allowed"] else exits.FAILED

    return with_server(data_dir, ask)


def _show_explained(explained: dict[str, Any]) -> None:
    screen.say(f"{explained['url']}: {'allowed' if explained['allowed'] else 'not allowed'}")
    shown = screen.table("rule", "", "what it says", wide=("what it says",))
    shown.columns[2].no_wrap = False
    shown.columns[2].overflow = "fold"
    for rule in [*explained["rules"], *explained["addresses"]]:
        says = f"{rule['detail']}\n→ {rule['hint']}" if rule.get("hint") else rule["detail"]
        shown.add_row(rule["rule"], screen.word("ok" if rule["allowed"] else "fail"), screen.plain(says))
    screen.show(shown)
    if tls := explained["tls"]:
        screen.say(f"its certificate is good for {screen.count(tls['daysLeft'], 'day')}, until {tls['notAfter']}")
