"""The tree of commands, and how running one ends: in an exit code and at most one line about what is wrong."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from tramontane.cli import (
    batch,
    chat,
    database,
    doctor,
    exits,
    jobs,
    keys,
    limits,
    pauses,
    schedules,
    serve,
    tenants,
    webhook_endpoints,
    webhooks,
)
from tramontane.cli.options import QuickCommand, QuickGroup
from tramontane.cli.signals import Stopped


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    try:
        code: int = program()(arguments, standalone_mode=False) or exits.OK
        sys.stdout.flush()
        return code
    except (Stopped, KeyboardInterrupt):
        return exits.INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has left; the interpreter would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILED
    except TyperException as error:
        exits.report(error.format_message())
        return exits.USAGE
    except Exception as error:
        if ours := exits.find_ours(error):
            exits.report(ours.message)
            return exits.code_of(ours)
        raise


def program() -> typer.Typer:
    """The tree of commands."""
    tree = typer.Typer(
        cls=QuickGroup,
        add_completion=False,
        pretty_exceptions_enable=False,  # it would show locals, and with them keys and messages
        rich_markup_mode=None,
        help="Background jobs that survive crashes, streams that resume exactly, signed webhooks: for the Mistral API.",
        epilog=exits.TABLE,
    )
    tree.callback(invoke_without_command=True)(_top)
    for command in (serve.serve, serve.api, serve.worker, serve.simulator, chat.chat, jobs.submit):
        tree.command(cls=QuickCommand)(command)
    tree.add_typer(_group("jobs", "See and steer jobs.", jobs.COMMANDS))
    tree.command(cls=QuickCommand)(batch.batch)
    tree.add_typer(_group("schedules", "Have jobs done again and again.", schedules.COMMANDS))
    for steering in (pauses.pause, pauses.resume, pauses.pauses):
        tree.command(cls=QuickCommand)(steering)
    tree.add_typer(_webhooks())
    tree.add_typer(_group("keys", "Make and revoke API keys.", keys.COMMANDS))
    tree.add_typer(_group("tenants", "Say what each tenant may use.", tenants.COMMANDS))
    tree.add_typer(_group("db", "Look after the database.", database.COMMANDS))
    tree.command(cls=QuickCommand)(limits.limits)
    tree.command(cls=QuickCommand)(doctor.doctor)
    tree.command(cls=QuickCommand)(version)
    return tree


def version() -> int:
    """Show the version."""
    from tramontane import __version__

    print(f"tramontane {__version__}")
    return exits.OK


def _top(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> int:
    if show_version:
        version()
        raise typer.Exit
    return _show_help(context)


def _group(name: str, about: str, commands: Mapping[str, Callable[..., int]]) -> typer.Typer:
    group = typer.Typer(name=name, help=about, cls=QuickGroup, rich_markup_mode=None)
    group.callback(invoke_without_command=True)(_show_help)
    for word, command in commands.items():
        group.command(word, cls=QuickCommand)(command)
    return group


def _webhooks() -> typer.Typer:
    group = typer.Typer(name="endpoints", cls=QuickGroup, rich_markup_mode=None)
    group.callback(invoke_without_command=True)(webhook_endpoints.endpoints)
    for word, command in webhook_endpoints.COMMANDS.items():
        group.command(word, cls=QuickCommand)(command)
    whole = _group("webhooks", "Tell others what happens, and see that it arrives.", webhooks.COMMANDS)
    whole.add_typer(group)
    return whole


def _show_help(context: typer.Context) -> int:
    if context.invoked_subcommand is None:
        print(context.get_help())
    return exits.OK
