"""`tramontane keys` and `tramontane tenants`: on the database itself, and seen at once by the server that uses it."""

import asyncio
import io
import re
import signal
from pathlib import Path
from typing import Any, cast

import pytest
from terminal import Ended, Terminal

from tramontane.cli.program import run
from tramontane.database import open_database
from tramontane.settings import Settings
from tramontane.simulator import Simulator
from tramontane.store import TenantStore
from tramontane.vault import Vault

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

ENCRYPTION_KEY = "A" * 43 + "="
HERS = "mistral-key-of-acme"


@pytest.fixture
def terminal(short_dir: Path, database_url: str, simulator: Simulator) -> Terminal:
    return Terminal(
        short_dir / "data",
        DATABASE_URL=database_url,
        MISTRAL_SERVER_URL=simulator.url,
        MISTRAL_API_KEY="key",
        TRAMONTANE_HEARTBEAT="1s",
        TRAMONTANE_POLL="0.2s",
        TRAMONTANE_ENCRYPTION_KEY=ENCRYPTION_KEY,
    )


def with_key(terminal: Terminal, key: str) -> Terminal:
    return Terminal(terminal.data_dir, **{**terminal.environment, "TRAMONTANE_API_KEY": key})


def shown(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    return cast("dict[str, Any]", ended.json)


async def test_a_key_is_shown_once_and_works_until_it_is_revoked(terminal: Terminal) -> None:
    with terminal.serve() as server:
        assert "open to every program of this machine" in server.greeting
        assert terminal.run("jobs", "list").code == 0

        made = terminal.run("keys", "create", "--tenant", "acme", "--name", "ci", "--expires", "90d")
        [first, secret] = made.out.splitlines()
        assert re.fullmatch(r"tm_[A-Za-z0-9_-]{43}", secret)
        key_id = first.split()[0]

        refused = terminal.run("jobs", "list")
        assert (refused.code, refused.err.count("\n")) == (1, 1)
        assert "tramontane keys create" in refused.err
        assert with_key(terminal, secret).run("jobs", "list").code == 0
        answered = await asyncio.to_thread(with_key(terminal, secret).run, "submit", "Say: aye", "--wait")
        assert (answered.code, answered.out) == (0, "aye\n")

        listed = terminal.run("keys", "list")
        assert key_id in listed.out
        assert secret not in listed.out + listed.err + terminal.run("keys", "list", "--json").out

        revoked = terminal.run("keys", "revoke", key_id)
        assert (revoked.code, "revoked" in revoked.out) == (0, True)
        refused = with_key(terminal, secret).run("jobs", "list")
        assert (refused.code, "revoked" in refused.err) == (1, True)
        said = server.end(signal.SIGTERM)
    assert secret not in said.out + said.err


def test_a_server_that_has_keys_says_so(terminal: Terminal) -> None:
    terminal.run("keys", "create")
    with terminal.serve() as server:
        assert "keys     needed" in server.greeting
        assert "$TRAMONTANE_API_KEY" in server.greeting


def test_an_address_that_others_reach_is_refused_without_keys_and_served_with_one(terminal: Terminal) -> None:
    refused = terminal.run("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.code == 2
    assert refused.err.splitlines()[-1].startswith("error: TRAMONTANE_HOST")
    assert "tramontane keys create" in refused.err
    assert "Traceback" not in refused.err

    key = str(shown(terminal.run("keys", "create", "--json"))["key"])
    with terminal.start("api", "--host", "0.0.0.0", "--port", "0", until="  try"):
        assert terminal.run("jobs", "list").code == 1
        assert with_key(terminal, key).run("jobs", "list").code == 0


def test_a_loopback_behind_a_proxy_is_refused_without_keys_by_the_same_line(terminal: Terminal) -> None:
    behind = Terminal(terminal.data_dir, **{**terminal.environment, "TRAMONTANE_ALLOWED_HOSTS": "jobs.example"})
    refused = behind.run("serve", "--port", "0")
    assert refused.code == 2
    assert refused.err.splitlines()[-1].startswith("error: TRAMONTANE_ALLOWED_HOSTS")
    assert "tramontane keys create" in refused.err
    assert "Traceback" not in refused.err


async def test_a_command_that_opens_the_engine_itself_needs_no_key(terminal: Terminal) -> None:
    terminal.run("keys", "create")
    answered = await asyncio.to_thread(terminal.run, "submit", "Say: aye", "--wait")
    assert (answered.code, answered.out) == (0, "aye\n")


def test_keys_as_json_are_what_scripts_want(terminal: Terminal) -> None:
    made = shown(terminal.run("keys", "create", "--tenant", "acme", "--scopes", "read,admin", "--name", "n", "--json"))
    operator = shown(terminal.run("keys", "create", "--operator", "--json"))
    assert set(made) - {"key"} == {
        *("keyId", "tenant", "name", "scopes", "status", "createdAt", "expiresAt", "revokedAt", "usedAt")
    }
    assert (made["tenant"], made["scopes"], made["status"]) == ("acme", ["admin", "read"], "active")
    assert (operator["tenant"], operator["scopes"]) == ("default", ["operator"])

    keys = shown(terminal.run("keys", "list", "--tenant", "acme", "--json"))["keys"]
    assert [key["keyId"] for key in keys] == [made["keyId"]]
    assert shown(terminal.run("keys", "revoke", str(made["keyId"]), "--json"))["status"] == "revoked"
    assert terminal.run("keys", "revoke", "key_" + "0" * 26).code == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("keys", "create", "--scopes", "write"), "--scopes: must be some of submit, read, admin"),
        (("keys", "create", "--scopes", "operator"), "--scopes"),
        (("keys", "create", "--tenant", "A b"), "--tenant: must be"),
        (("keys", "create", "--expires", "soon"), "--expires: must be"),
        (("keys", "create", "--expires", "0"), "--expires: must be"),
        (("keys", "create", "--operator", "--tenant", "acme"), "--operator"),
        (("keys", "revoke", "tm_" + "A" * 43), "ID: is the key itself"),
        (("tenants", "set", "acme"), "nothing to set"),
        (("tenants", "set", "acme", "--weight", "0"), "--weight: must be a number from 0.001 to 1000"),
        (("tenants", "set", "acme", "--weight", "1e-308"), "--weight: must be"),
        (("tenants", "set", "acme", "--weight", "1001"), "--weight: must be"),
        (("tenants", "set", "acme", "--weight", "nan"), "--weight: must be"),
        (("tenants", "set", "acme", "--concurrency", "0"), "--concurrency: must be"),
        (("tenants", "set", "acme", "--top-priority", "-1"), "--top-priority: must be"),
        (("tenants", "set", "acme", "--daily-cost", "nan"), "--daily-cost: must be"),
        (("tenants", "set", "acme", "--on-budget", "wait"), "--on-budget: must be"),
        (("tenants", "set", "acme", "--mistral-key", HERS), "--mistral-key: takes `-`"),
        (("tenants", "set", "acme", "--mistral-key", "-"), "--mistral-key: standard input holds no key"),
    ],
)
def test_a_wrong_word_is_one_line_that_names_it(
    tmp_path: Path,
    words: tuple[str, ...],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b" \n")))
    code = run([*words, "--data-dir", str(tmp_path / "data")])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert told in err
    assert HERS not in err
    assert "A" * 43 not in err
    assert not (tmp_path / "data").exists()


def test_a_budget_of_money_is_set_with_a_warning_where_there_are_no_prices(terminal: Terminal, tmp_path: Path) -> None:
    warned = terminal.run("tenants", "set", "acme", "--daily-cost", "12.50", "--json")
    assert shown(warned)["dailyCost"] == "12.50"
    assert warned.err.startswith("warning: --daily-cost: ")
    assert "TRAMONTANE_PRICES" in warned.err

    (tmp_path / "prices.toml").write_text(
        '[[price]]\nmodel = "mistral-small-*"\nfrom = 2026-01-01\ninput = 1\noutput = 1\ncurrency = "EUR"\n'
    )
    with_prices = Terminal(
        terminal.data_dir, **{**terminal.environment, "TRAMONTANE_PRICES": str(tmp_path / "prices.toml")}
    )
    assert with_prices.run("tenants", "set", "acme", "--daily-cost", "13").err == ""
    assert terminal.run("tenants", "set", "acme", "--daily-cost", "none").err == ""


async def test_what_is_set_for_a_tenant_is_shown_and_its_mistral_key_never(
    terminal: Terminal, database_url: str
) -> None:
    words = ("--weight", "2", "--concurrency", "3", "--top-priority", "5", "--daily-tokens", "5000000000")
    more = ("--daily-cost", "12.50", "--on-budget", "fail", "--queue-limit", "100", "--description", "none")
    terminal.run("tenants", "set", "acme", *words, *more)
    keyed = terminal.run("tenants", "set", "acme", "--mistral-key", "-", stdin=f"{HERS}\n")
    told = terminal.run("tenants", "show", "acme", "--json")
    assert told.json == {
        "tenant": "acme",
        "description": "none",
        "weight": 2.0,
        "concurrency": 3,
        "topPriority": 5,
        "queueLimit": 100,
        "dailyTokens": 5_000_000_000,
        "dailyCost": "12.50",
        "onBudget": "fail",
        "mistralKey": True,
    }
    listed = terminal.run("tenants", "list")
    assert "acme" in listed.out
    assert HERS not in keyed.out + keyed.err + told.out + listed.out
    async with open_database(Settings(database_url=database_url)) as database:
        sealed = (await TenantStore(database.pool).get("acme")).mistral_key
        assert sealed is not None
        assert HERS.encode() not in sealed
        assert Vault([ENCRYPTION_KEY]).open(sealed) == HERS

    freed = terminal.run("tenants", "set", "acme", "--mistral-key", "none", "--concurrency", "none", "--json")
    assert (shown(freed)["mistralKey"], shown(freed)["concurrency"], shown(freed)["weight"]) == (False, None, 2.0)
