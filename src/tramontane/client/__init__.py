"""Clients of a Tramontane server: the verbs of its HTTP interface, and jobs as values on top of them."""

from tramontane.client.answers import Answers
from tramontane.client.api import ApiClient
from tramontane.client.calls import Headers
from tramontane.client.events import (
    StreamAttempt,
    StreamChunk,
    StreamComplete,
    StreamError,
    StreamEvent,
    StreamStart,
    StreamTool,
)
from tramontane.client.faults import ProtocolGap, Unreachable
from tramontane.client.frames import ServerEvent
from tramontane.client.inprocess import InProcess
from tramontane.client.job import Job, Result
from tramontane.client.problems import of_line
from tramontane.client.question import Prompt, job_body
from tramontane.client.stream import EventStream

__all__ = [
    "Answers",
    "ApiClient",
    "EventStream",
    "Headers",
    "InProcess",
    "Job",
    "Prompt",
    "ProtocolGap",
    "Result",
    "ServerEvent",
    "StreamAttempt",
    "StreamChunk",
    "StreamComplete",
    "StreamError",
    "StreamEvent",
    "StreamStart",
    "StreamTool",
    "Unreachable",
    "job_body",
    "of_line",
]
