"""deploy/: each file is read as its tool reads it, and each of its commands is run as it stands there.

There is no container engine here: images are not built, and what a container adds (its file system, its network) is not
tried. What runs is the command, with the environment that the file gives it, against a real Postgres.
"""

import asyncio
import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from cryptography.fernet import Fernet

from tramontane.ports import listen_on
from tramontane.settings import Settings, read_settings, seconds
from tramontane.simulator import Behaviour, Simulator

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TRAMONTANE = Path(sys.executable).with_name("tramontane")
SETTINGS = {field.metadata["env"] for field in vars(Settings)["__dataclass_fields__"].values()}
EXAMPLE = DEPLOY / "tramontane.env.example"


@dataclass(frozen=True)
class Unit:
    """One command of one file, as its tool runs it."""

    name: str
    #: After `tramontane`.
    arguments: tuple[str, ...]
    environment: dict[str, str]
    #: Of the probe or health check that says that it is ready.
    port: int
    #: Seconds between the signal and the kill.
    patience: float


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return document


def image() -> dict[str, list[str]]:
    """The Dockerfile's last stage: its instructions, and what each of them says."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    stage = text[text.rindex("\nFROM ") :]
    found: dict[str, list[str]] = {}
    for line in stage.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            found.setdefault(word, []).append(rest.strip())
    return found


def image_environment() -> dict[str, str]:
    pairs = [pair.split("=", 1) for line in image()["ENV"] for pair in shlex.split(line)]
    return {name: value for name, value in pairs if name != "PATH"}


def of_compose() -> Iterator[Unit]:
    for name in ("api", "worker"):
        service = compose()["services"][name]
        test = service["healthcheck"]["test"]
        found = re.search(r":(\d+)/readyz", test[-1])
        assert found
        environment = image_environment() | env_file(EXAMPLE) | service.get("environment", {})
        patience = seconds(service["stop_grace_period"])
        yield Unit(f"compose-{name}", tuple(service["command"]), environment, int(found[1]), patience)


def of_systemd() -> Iterator[Unit]:
    for path in sorted((DEPLOY / "systemd").glob("*.service")):
        text = path.read_text("utf-8").replace("%i", "9464")
        unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(text)
        own = dict(line.split("=", 2)[1:] for line in text.splitlines() if line.startswith("Environment="))
        service = unit["Service"]
        program, *arguments = shlex.split(service["ExecStart"])
        assert Path(program).name == "tramontane"
        port = int(own.get("TRAMONTANE_METRICS_PORT", 8787))
        yield Unit(
            f"systemd-{path.stem}", tuple(arguments), env_file(EXAMPLE) | own, port, seconds(service["TimeoutStopSec"])
        )


def manifests() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        found += list(yaml.safe_load_all(path.read_text("utf-8")))
    return found


def of_kubernetes() -> Iterator[Unit]:
    shared: dict[str, dict[str, str]] = {
        one["kind"]: one.get("data") or one.get("stringData") or {} for one in manifests()
    }
    for one in manifests():
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            [container] = pod["containers"]
            own = {variable["name"]: variable["value"] for variable in container["env"]}
            environment = image_environment() | shared["ConfigMap"] | shared["Secret"] | own
            [port] = container["ports"]
            patience = float(pod["terminationGracePeriodSeconds"])
            name = one["metadata"]["labels"]["app.kubernetes.io/component"]
            yield Unit(f"kubernetes-{name}", tuple(container["args"]), environment, port["containerPort"], patience)


UNITS = [*of_compose(), *of_systemd(), *of_kubernetes()]
ENCRYPTION_KEY = Fernet.generate_key().decode()
IDS = [unit.name for unit in UNITS]


# What the files say


@pytest.mark.parametrize("unit", UNITS, ids=IDS)
def test_every_variable_is_a_setting_and_holds_what_it_takes(unit: Unit) -> None:
    assert unit.environment.keys() <= SETTINGS
    assert read_settings({name: text for name, text in unit.environment.items() if text != "CHANGE-ME"})
    assert {"DATABASE_URL", "MISTRAL_API_KEY", "TRAMONTANE_ENCRYPTION_KEY"} <= unit.environment.keys()


@pytest.mark.parametrize("unit", UNITS, ids=IDS)
def test_who_ends_it_waits_longer_than_it_drains(unit: Unit) -> None:
    drains = seconds(unit.environment.get("TRAMONTANE_DRAIN_DELAY", "0"))
    if "worker" in unit.arguments:
        drains += seconds(unit.environment.get("TRAMONTANE_GRACE", "10s"))
    assert unit.patience >= drains + 10


def test_the_image_runs_as_nobody_special_and_gets_the_signals() -> None:
    stage = image()
    assert stage["USER"] == ["10001"]
    assert stage["ENTRYPOINT"] == ['["tramontane"]'], "the exec form: no shell swallows SIGTERM"
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8")
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert "hatchling==" in lock, "the image builds without a look at any index but for what is locked"


def test_compose_starts_two_workers_and_waits_for_postgres() -> None:
    services = compose()["services"]
    assert services["worker"]["deploy"]["replicas"] == 2
    for name in ("api", "worker"):
        assert services[name]["depends_on"]["postgres"]["condition"] == "service_healthy"
        assert services[name]["read_only"] is True
    assert services["postgres"]["volumes"][0].split(":")[0] in compose()["volumes"]


def test_every_manifest_has_what_kubernetes_asks_of_its_kind() -> None:
    found = manifests()
    kinds = [one["kind"] for one in found]
    assert sorted(set(kinds)) == ["ConfigMap", "Deployment", "PodDisruptionBudget", "Secret", "Service"]
    versions = {"Deployment": "apps/v1", "PodDisruptionBudget": "policy/v1"}
    pods = [one["spec"]["template"] for one in found if one["kind"] == "Deployment"]
    for one in found:
        assert one["apiVersion"] == versions.get(one["kind"], "v1")
        assert re.fullmatch(r"[a-z0-9-]+", one["metadata"]["name"])
        for value in (one.get("data") or one.get("stringData") or {}).values():
            assert isinstance(value, str)
        if one["kind"] == "Deployment":
            assert one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]
        elif one["kind"] in ("Service", "PodDisruptionBudget"):
            selector = one["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= pod["metadata"]["labels"].items() for pod in pods)
    for pod in pods:
        [container] = pod["spec"]["containers"]
        names = {port["name"] for port in container["ports"]}
        for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
            assert container[probe]["httpGet"]["path"] == path
            assert container[probe]["httpGet"]["port"] in names
        assert all(isinstance(variable["value"], str) for variable in container["env"])
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


# In CI a missing systemd-analyze is a failure: there the call itself says so.
@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and "CI" not in os.environ,  # noqa: TID251
    reason="systemd-analyze is missing",
)
@pytest.mark.parametrize("path", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_the_units(path: Path, tmp_path: Path) -> None:
    unit = tmp_path / path.name
    # The one thing that is not on this machine is the program itself.
    unit.write_text(path.read_text("utf-8").replace("/opt/tramontane/bin/tramontane", str(TRAMONTANE)))
    found = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


# What the commands do


@dataclass
class Running:
    """A unit that was started, and where its probe looks."""

    process: asyncio.subprocess.Process
    url: str

    async def get(self, path: str, *, key: str | None = None) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}{path}", headers=headers) as response:
            return response.status, await response.text()

    async def ready(self) -> None:
        """Return once the readiness probe is content."""
        async with asyncio.timeout(25):
            while True:
                assert self.process.returncode is None, "it ended"
                with suppress(aiohttp.ClientError):
                    if (await self.get("/readyz"))[0] == 200:
                        return
                await asyncio.sleep(0.05)

    async def unready(self) -> None:
        """Return once the readiness probe is told to look elsewhere."""
        async with asyncio.timeout(5):
            while (await self.get("/readyz"))[0] != 503:  # noqa: ASYNC110 - another process' doing
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running(unit: Unit, database_url: str, simulator: Simulator, directory: Path) -> AsyncIterator[Running]:
    """The unit's command with its environment; but what the example leaves open is filled in, and time is saved."""
    with listen_on("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    filled = {
        "DATABASE_URL": database_url,
        "MISTRAL_API_KEY": "a-key",
        "MISTRAL_SERVER_URL": simulator.url,
        "TRAMONTANE_ENCRYPTION_KEY": ENCRYPTION_KEY,
        "TRAMONTANE_DATA_DIR": str(directory / "data"),
        "TRAMONTANE_PORT" if "api" in unit.arguments else "TRAMONTANE_METRICS_PORT": str(port),
    }
    if "TRAMONTANE_DRAIN_DELAY" in unit.environment:
        filled["TRAMONTANE_DRAIN_DELAY"] = "500ms"
    environment = {"PATH": f"{TRAMONTANE.parent}:{os.environ['PATH']}"} | unit.environment | filled  # noqa: TID251
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "tramontane", *unit.arguments, env=environment, stdout=log, stderr=log
        )
        try:
            yield Running(process, f"http://127.0.0.1:{port}")
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            print((directory / "log").read_text()[-3000:])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def key(module_database_url: str) -> str:
    """An operator's, made as docs/operations.md says."""
    environment = {"PATH": str(TRAMONTANE.parent), "DATABASE_URL": module_database_url}
    made = await asyncio.create_subprocess_exec(
        *("tramontane", "keys", "create", "--operator"), env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await made.communicate()
    [key] = re.findall(r"^tm_\S+$", out.decode(), re.MULTILINE)
    return str(key)


@pytest.mark.e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", UNITS, ids=IDS)
async def test_its_command_becomes_ready_shows_figures_and_drains_within_its_time(
    unit: Unit, module_database_url: str, key: str, simulator: Simulator, short_dir: Path
) -> None:
    async with running(unit, module_database_url, simulator, short_dir) as one:
        await one.ready()
        assert (await one.get("/healthz"))[0] == 200
        if unit.environment.get("TRAMONTANE_HOST") == "0.0.0.0":
            assert (await one.get("/metrics"))[0] == 401
        status, page = await one.get("/metrics", key=key)
        assert status == 200
        assert "tramontane_jobs{" in page
        one.process.send_signal(signal.SIGTERM)
        if "TRAMONTANE_DRAIN_DELAY" in unit.environment:
            await one.unready()
        async with asyncio.timeout(unit.patience):
            assert await one.process.wait() == 0


@pytest.mark.e2e
@pytest.mark.timeout(60)
async def test_a_worker_that_drains_says_so_until_its_last_job_and_a_second_signal_ends_it(
    module_database_url: str, key: str, simulator: Simulator, short_dir: Path
) -> None:
    simulator.behaviour = Behaviour(tokens=3000, tokens_per_second=50)
    [worker, api] = [next(unit for unit in UNITS if unit.name == f"kubernetes-{name}") for name in ("worker", "api")]
    (short_dir / "api").mkdir()
    async with (
        running(api, module_database_url, simulator, short_dir / "api") as face,
        running(worker, module_database_url, simulator, short_dir) as one,
    ):
        await face.ready()
        await one.ready()
        body = {"messages": [{"role": "user", "content": "Hello!"}]}
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{face.url}/api/jobs", json=body) as response,
        ):
            assert response.status == 202, await response.text()
        await simulator.wait_for_chunks(1, 3)
        one.process.send_signal(signal.SIGTERM)
        await one.unready()
        assert (await one.get("/healthz"))[0] == 200
        one.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(2):
            assert await one.process.wait() == 130
