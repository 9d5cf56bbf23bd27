"""Listening: a taken port is one clear line, however late it is taken."""

import socket

import pytest

from tramontane.errors import ConfigurationError
from tramontane.ports import listen_on, url_of


def test_a_port_is_listened_on_at_once() -> None:
    with listen_on("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname(), timeout=5):
        assert url_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_a_port_that_somebody_takes_between_our_two_steps_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]

        class Slow(socket.socket):
            def bind(self, address: object) -> None:
                super().bind(address)  # type: ignore[arg-type]
                other.listen()

        monkeypatch.setattr(socket, "socket", Slow)
        with pytest.raises(ConfigurationError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: .*in use; do this$"):
            listen_on("127.0.0.1", port, remedy="do this")
