"""The verifiers of docs/receivers.md and of the JavaScript client, each in its own language, over the published cases.

Python, bash and Node run wherever the suite runs (without Node: a skip on a laptop, a failure in CI); the others where
their language is installed.
"""

import ast
import asyncio
import base64
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from webhook_cases import CASES, ROOT, body_of, named, secrets_of

from tramontane.ids import utc_now
from tramontane.webhooks.signatures import new_secret, signed_headers

PAGE = (ROOT / "docs" / "receivers.md").read_text("utf-8")
CLIENT = ROOT / "clients" / "js"
EXPECTED = {case["name"]: case["v1"] for case in CASES}


def verifier(name: str) -> str:
    """The block of the page that is marked with that name."""
    [block] = re.findall(rf"<!-- verifier: {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    return str(block)


def tool(*names: str) -> str:
    """The path of the first of these programs that is there. Without it a test skips, and in CI it fails."""
    for name in names:
        if found := shutil.which(name):
            return found
    if "CI" in os.environ:  # noqa: TID251  # the one thing a test asks of its surroundings
        pytest.fail(f"{names[0]} is not on the PATH")
    pytest.skip(f"{names[0]} is not on the PATH")


def calls() -> list[dict[str, Any]]:
    """One call per case and secret, for drivers that read JSON."""
    return [
        {
            "name": case["name"],
            "headers": {name.lower(): value for name, value in case["headers"].items()},
            "secret": secret,
            "now": case["now"],
            "body": base64.b64encode(body_of(case)).decode(),
        }
        for case in CASES
        for secret in secrets_of(case)
    ]


def verdicts(output: str) -> dict[str, bool]:
    """By case, from lines of `name true|false`: accepted if it is with any of its secrets."""
    found: dict[str, bool] = {}
    for line in output.splitlines():
        name, verdict = line.split()
        found[name] = found.get(name, False) or {"true": True, "false": False}[verdict]
    return found


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    """The output of a program that must succeed."""
    env = {**os.environ, **more}  # noqa: TID251  # what it needs to run
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_of_the_page_is_run_by_a_test() -> None:
    marked = set(re.findall(r"<!-- verifier: (\S+) -->", PAGE))
    assert marked == {"python-ours", "fastapi", "python", "node", "express", "go", "ruby", "php", "bash"}
    assert PAGE.count("```") == 2 * (len(marked) + 2), "and the two that show a request and a command"


def test_python_with_our_package(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(verifier("python-ours"), "receivers.md", "exec"), names)
    body, secret = b'{"event":"a.b"}', new_secret()
    headers = headers_of(body, secret)

    assert names["receive"](body, headers, secret)
    assert not names["receive"](body + b" ", headers, secret)
    assert capsys.readouterr().out == "msg_1 a.b {}\nno signature matches: another secret, or the body was changed\n"


def test_python_without_a_package() -> None:
    names: dict[str, Any] = {}
    source = verifier("python")
    ast.parse(source, feature_version=(3, 8))
    exec(compile(source, "receivers.md", "exec"), names)
    found: dict[str, bool] = {}
    for call in calls():
        arguments = base64.b64decode(call["body"]), call["headers"], call["secret"], call["now"]
        found[call["name"]] = found.get(call["name"], False) or names["verify"](*arguments)
    assert found == EXPECTED


def test_bash_with_openssl(tmp_path: Path) -> None:
    lines = [verifier("bash")]
    for number, call in enumerate(calls()):
        (tmp_path / f"{number}.body").write_bytes(base64.b64decode(call["body"]))
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        given = [f"{number}.body", *(call["headers"].get(name, "") for name in names), call["secret"]]
        arguments = " ".join(shlex.quote(one) for one in given)
        lines.append(f"NOW={call['now']}; if verify_webhook {arguments}; then v=true; else v=false; fi")
        lines.append(f"echo {call['name']} $v")
    (tmp_path / "driver.sh").write_text("\n".join(lines), "utf-8")
    tool("openssl")

    assert verdicts(run(tool("bash"), "driver.sh", cwd=tmp_path)) == EXPECTED


def test_the_line_of_openssl_makes_the_signature_of_the_body(tmp_path: Path) -> None:
    [line] = re.findall(r"```bash\n(openssl dgst.*?)```", PAGE, re.DOTALL)
    sent = named("sent")
    (tmp_path / "body.json").write_bytes(body_of(sent))
    tool("openssl")

    made = run(tool("bash"), "-c", line, cwd=tmp_path, SECRET=sent["secret"])

    assert made.strip() == sent["headers"]["X-Webhook-Signature"]


def test_ruby(tmp_path: Path) -> None:
    driver = """
        require "json"
        JSON.parse(File.read("calls.json", encoding: "utf-8")).each do |call|
          body = call["body"].unpack1("m0")
          puts "#{call["name"]} #{verify_webhook(body, call["headers"], call["secret"], call["now"])}"
        end
    """
    (tmp_path / "calls.json").write_text(json.dumps(calls()), "utf-8")
    (tmp_path / "driver.rb").write_text(verifier("ruby") + driver, "utf-8")

    assert verdicts(run(tool("ruby"), "driver.rb", cwd=tmp_path)) == EXPECTED


def test_php(tmp_path: Path) -> None:
    driver = """
        foreach (json_decode(file_get_contents('calls.json'), true) as $call) {
            $body = base64_decode($call['body']);
            $verdict = verify_webhook($body, $call['headers'], $call['secret'], $call['now']);
            echo $call['name'], ' ', $verdict ? 'true' : 'false', "\\n";
        }
    """
    (tmp_path / "calls.json").write_text(json.dumps(calls()), "utf-8")
    (tmp_path / "driver.php").write_text(verifier("php") + driver, "utf-8")

    assert verdicts(run(tool("php"), "driver.php", cwd=tmp_path)) == EXPECTED


@pytest.mark.timeout(240)  # the first time, Go compiles its standard library
def test_go(tmp_path: Path) -> None:
    driver = """
        package main

        import (
            "encoding/json"
            "fmt"
            "net/http"
            "os"
            "time"

            "example/webhooks"
        )

        func main() {
            var calls []struct {
                Name, Secret string
                Headers      map[string]string
                Body         []byte
                Now          int64
            }
            text, err := os.ReadFile("calls.json")
            if err == nil {
                err = json.Unmarshal(text, &calls)
            }
            if err != nil {
                panic(err)
            }
            for _, call := range calls {
                headers := http.Header{}
                for name, value := range call.Headers {
                    headers.Set(name, value)
                }
                fmt.Println(call.Name, webhooks.Verify(call.Body, headers, call.Secret, time.Unix(call.Now, 0)))
            }
        }
    """
    (tmp_path / "webhooks").mkdir()
    (tmp_path / "webhooks" / "verify.go").write_text(verifier("go"), "utf-8")
    (tmp_path / "main.go").write_text(driver, "utf-8")
    (tmp_path / "go.mod").write_text("module example\n\ngo 1.19\n", "utf-8")
    (tmp_path / "calls.json").write_text(json.dumps(calls()), "utf-8")

    assert verdicts(run(tool("go"), "run", ".", cwd=tmp_path, GOTOOLCHAIN="local")) == EXPECTED


def test_the_verifier_of_the_javascript_client_passes_its_tests() -> None:
    output = run(tool("node"), "--test", "--test-reporter=tap", "test/verify.test.js", cwd=CLIENT)

    passed = re.search(r"^# pass (\d+)$", output, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) >= len(CASES)


async def test_the_node_example_answers_204_to_what_is_genuine_and_400_to_the_rest(tmp_path: Path) -> None:
    secret, body = new_secret(), b'{"event":"a.b"}'
    good = headers_of(body, secret)
    installed(tmp_path)
    (tmp_path / "example.mjs").write_text(verifier("node"), "utf-8")
    driver = """
        import { server } from "./example.mjs";
        server.listen(0, "127.0.0.1", () => console.log(server.address().port));
    """
    (tmp_path / "driver.mjs").write_text(driver, "utf-8")

    process = await asyncio.create_subprocess_exec(
        tool("node"),
        "driver.mjs",
        cwd=tmp_path,
        env={**os.environ, "WEBHOOK_SECRET": secret},  # noqa: TID251  # what it needs to run
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(await process.stdout.readline())}/webhooks"
        statuses = []
        async with aiohttp.ClientSession() as session:
            for headers in (good, headers_of(body, new_secret()), {}):
                async with session.post(url, data=body, headers=headers) as answer:
                    statuses.append(answer.status)
        assert await process.stdout.readline() == b"msg_1 a.b {}\n"
    finally:
        process.kill()
        await process.communicate()
    assert statuses == [204, 400, 400]


def test_the_express_example_is_javascript(tmp_path: Path) -> None:
    (tmp_path / "example.mjs").write_text(verifier("express"), "utf-8")
    run(tool("node"), "--check", "example.mjs", cwd=tmp_path)


def installed(directory: Path) -> None:
    """Our JavaScript package, as npm would put it there."""
    (directory / "node_modules").mkdir()
    (directory / "node_modules" / "tramontane").symlink_to(CLIENT, target_is_directory=True)


def headers_of(body: bytes, secret: str) -> dict[str, str]:
    """An attempt of ours, of this second."""
    return dict(
        signed_headers(
            body=body,
            message_id="msg_1",
            timestamp="2026-11-22T06:46:00.123Z",
            attempted_at=utc_now(),
            secrets=(secret,),
            event="a.b",
            delivery_id="dlv_1",
            attempt=1,
        )
    )
