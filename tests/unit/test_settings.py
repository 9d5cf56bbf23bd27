import dataclasses
from pathlib import Path

import pytest

from tramontane.errors import ConfigurationError
from tramontane.settings import Settings, read_settings, seconds


def test_without_anything_the_defaults_hold() -> None:
    assert read_settings({}) == Settings()
    assert (Settings().concurrency, Settings().rate_limit, Settings().attempts) == (5, 10.0, 3)
    assert (Settings().port, Settings().simulator_port, Settings().data_dir) == (8787, 8788, Path(".tramontane"))


def test_the_environment_is_read_and_a_flag_goes_before_it() -> None:
    environment = {"TRAMONTANE_PORT": " 9000 ", "TRAMONTANE_HEARTBEAT": "1m", "TRAMONTANE_CORS_ORIGINS": "a, b,,"}
    settings = read_settings(environment, port=7000, host=None)
    assert (settings.port, settings.heartbeat, settings.cors_origins) == (7000, 60.0, ("a", "b"))
    assert settings.host == "127.0.0.1"


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert read_settings({"TRAMONTANE_PORT": "", "DATABASE_URL": "  "}) == Settings()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TRAMONTANE_PORT", "65536"),
        ("TRAMONTANE_PORT", "-1"),
        ("TRAMONTANE_PORT", "eight"),
        ("TRAMONTANE_CONCURRENCY", "0"),
        ("TRAMONTANE_CONCURRENCY", "2.5"),
        ("TRAMONTANE_RATE_LIMIT", "-1"),
        ("TRAMONTANE_RATE_LIMIT", "nan"),
        ("TRAMONTANE_RATE_LIMIT", "inf"),
        ("TRAMONTANE_HEARTBEAT", "0"),
        ("TRAMONTANE_HEARTBEAT", "soon"),
        ("TRAMONTANE_POLL", "-1s"),
        ("MISTRAL_SERVER_URL", "api.mistral.ai"),
        ("TRAMONTANE_URL", "ftp://here"),
        ("TRAMONTANE_LOG_LEVEL", "loud"),
        ("TRAMONTANE_API_KEY", "tm_ä"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=name) as caught:
        read_settings({name: text})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_an_address_that_others_reach_is_told_from_loopback(host: str, inside: bool) -> None:
    assert Settings(host=host).on_loopback is inside


@pytest.mark.parametrize(
    ("names", "behind"),
    [
        ((), False),
        (("localhost", "LOCALHOST", "127.0.0.1", "127.0.0.2", "::1"), False),
        (("jobs.example",), True),
        (("localhost", "10.0.0.4"), True),
        (("tramontane.localhost",), True),
    ],
)
def test_a_name_that_is_not_loopbacks_means_a_proxy_in_front(names: tuple[str, ...], behind: bool) -> None:
    assert Settings(allowed_hosts=names).behind_proxy is behind


def test_a_secret_is_never_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings({"DATABASE_URL": "mysql://user:hunter2@host/db"})
    assert "hunter2" not in str(caught.value)
    assert "DATABASE_URL" in str(caught.value)
    settings = Settings(mistral_api_key="hunter2", database_url="postgresql://user:hunter2@host/db")
    assert "hunter2" not in repr(settings)


def test_an_address_loses_its_last_slash() -> None:
    assert read_settings({"MISTRAL_SERVER_URL": "http://localhost:8788/"}).mistral_server_url == "http://localhost:8788"


def test_every_setting_has_a_variable_of_its_own_and_a_help() -> None:
    fields = dataclasses.fields(Settings)
    names = [field.metadata["env"] for field in fields]
    assert len(set(names)) == len(names)
    assert all(field.metadata["help"] for field in fields)
    assert all(name.startswith(("TRAMONTANE_", "MISTRAL_")) or name == "DATABASE_URL" for name in names)


def test_every_default_is_one_that_could_be_given() -> None:
    for field in dataclasses.fields(Settings):
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert field.metadata["read"](f"{field.default:g}" if field.default < 1e6 else str(field.default)) == (
                field.default
            )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", 30.0), ("2h", 7200.0), ("250ms", 0.25), ("1.5m", 90.0), ("1d", 86400.0), ("7", 7.0), (" 7 ", 7.0),
     (7, 7.0), (0.5, 0.5), (0, 0.0), ("0", 0.0)],
)  # fmt: skip
def test_a_duration_is_seconds_or_a_number_with_its_unit(text: str | float, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "s", "1w", "-1s", "1 s", "1e3", "1s2s", "nan", -1, float("inf"), float("nan")])
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(text)
