"""An event on the wire: event, data, id, in that order, and nothing that could break a line."""

import msgspec
import pytest

from tramontane import sse
from tramontane.models import Event

SHOWN = "job_" + "0" * 25 + "1"


def event(kind: str, body: bytes, seq: int = 7) -> Event:
    return Event(seq=seq, attempt=2, type=kind, body=body)


def test_a_frame_is_event_data_id_and_a_blank_line() -> None:
    frame = sse.frame(SHOWN, event("chunk", b'{"off":0,"content":"Hi","tokenCount":1}'), 15.0)
    assert frame == (
        b"event: chunk\n"
        b'data: {"type":"chat:chunk","jobId":"%s","seq":7,"attempt":2,"off":0,"content":"Hi","tokenCount":1}\n'
        b"id: 7\n\n" % SHOWN.encode()
    )


def test_a_start_says_where_the_stream_is_and_how_often_it_shows_life() -> None:
    [message] = sse.Parser().feed(sse.frame(SHOWN, event("start", b'{"status":"started"}', 1), 15.0))
    assert msgspec.json.decode(message.data) == {
        "type": "chat:start",
        "jobId": SHOWN,
        "seq": 1,
        "attempt": 2,
        "eventsUrl": f"/api/jobs/{SHOWN}/events",
        "heartbeatMs": 15000,
        "status": "started",
    }


def test_an_event_without_fields_is_an_envelope() -> None:
    [message] = sse.Parser().feed(sse.frame(SHOWN, event("tool", b"{}"), 15.0))
    assert msgspec.json.decode(message.data) == {"type": "chat:tool", "jobId": SHOWN, "seq": 7, "attempt": 2}


@pytest.mark.parametrize("text", ["", "two\nlines", "\r\n\r\n", "\u0000", "\u2028", "😀", '"\\', "id: 9", "é" * 10_000])
def test_any_text_comes_through(text: str) -> None:
    body = msgspec.json.encode({"content": text})
    [message] = sse.Parser().feed(sse.frame(SHOWN, event("chunk", body), 15.0))
    assert (message.event, message.id) == ("chunk", "7")
    assert msgspec.json.decode(message.data)["content"] == text


@pytest.mark.parametrize("layout", [b'{\n  "toolCalls": [\r\n{}\r]\n}', b'{"a":1,\n\n"toolCalls":[{}]}'])
def test_a_line_break_in_the_layout_of_json_breaks_no_line(layout: bytes) -> None:
    [message] = sse.Parser().feed(sse.frame(SHOWN, event("tool", layout), 15.0))
    assert msgspec.json.decode(message.data)["toolCalls"] == [{}]
    assert message.id == "7"


def test_control_frames_carry_no_id_and_are_no_messages() -> None:
    parser = sse.Parser()
    for frame in (sse.opening(15.0), sse.HEARTBEAT, sse.retry(300)):
        assert parser.feed(frame) == []
        assert b"id:" not in frame
        assert frame.endswith(b"\n\n")
    assert parser.retry == 300
    assert sse.opening(15.0) == b"retry: 500\n: tramontane 1 hb=15000\n\n"
