"""The Mistral API, streamed and whole. Nothing outside this package knows Mistral's wire.

| file            | one idea                                                    |
| --------------- | ----------------------------------------------------------- |
| `client.py`     | MistralClient: one request, its limits in time, its end     |
| `stream.py`     | ChatStream: an answer while it is being written             |
| `completion.py` | an answer that was not streamed                             |
| `frames.py`     | bytes from a socket into the payloads of the event stream   |
| `answer.py`     | payloads into deltas, and in the end into the whole answer  |
| `choice.py`     | one choice of it, put together from its pieces              |
| `headers.py`    | what an answer's headers say about rates                    |
| `failures.py`   | all that can go wrong, as the tree in `tramontane.errors`   |
"""

from tramontane.mistral.choice import Delta
from tramontane.mistral.client import MistralClient
from tramontane.mistral.completion import Completion
from tramontane.mistral.failures import error_from, transport_error
from tramontane.mistral.headers import RateHeaders
from tramontane.mistral.stream import ChatStream, Timeouts

__all__ = [
    "ChatStream",
    "Completion",
    "Delta",
    "MistralClient",
    "RateHeaders",
    "Timeouts",
    "error_from",
    "transport_error",
]
