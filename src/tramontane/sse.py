"""Server-Sent Events on the wire: how a committed event becomes a frame. Pure.

A frame is `event`, `data`, `id`, in that order: a client that loses the connection before the blank line has not
moved its cursor. Control frames (comments, `retry`) never carry an id. See the WHATWG rules, HTML 9.2.
"""

from typing import Final

from tramontane.ids import show_id
from tramontane.models import Event, JobKey

MEDIA_TYPE: Final = "text/event-stream; charset=utf-8"
HEARTBEAT: Final = b": hb\n\n"


def opening(heartbeat_seconds: float) -> bytes:
    """What a stream says first, before any event: how soon to come back, and how often to expect a sign of life."""
    return b"retry: 500\n: tramontane 1 hb=%d\n\n" % round(heartbeat_seconds * 1000)


def retry(milliseconds: int) -> bytes:
    """Ask the client to wait this long before it comes back."""
    return b"retry: %d\n\n" % milliseconds


def frame(key: JobKey, event: Event, heartbeat_seconds: float) -> bytes:
    """The frame of a committed event: our envelope, then the event's own fields from the log, untouched."""
    job_id = show_id("job", key.id)
    head = f'{{"type":"chat:{event.type}","jobId":"{job_id}","seq":{event.seq},"attempt":{event.attempt}'
    if event.type == "start":
        head += f',"eventsUrl":"/api/jobs/{job_id}/events","heartbeatMs":{round(heartbeat_seconds * 1000)}'
    own = event.body[1:] if event.body == b"{}" else b"," + event.body[1:]
    return b"event: %s\ndata: %s%s\nid: %d\n\n" % (event.type.encode(), head.encode(), own, event.seq)
