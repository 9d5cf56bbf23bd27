"""The error bodies of the Mistral API, in every shape that has been seen or documented."""

from typing import Any

_ENVELOPES: dict[int, tuple[str, str, str]] = {
    400: ("Invalid request", "invalid_request_error", "3000"),
    401: ("Unauthorized", "authentication_error", "1100"),
    403: ("This model is not available for your subscription", "forbidden", "1910"),
    404: ("Not Found", "not_found", "1404"),
    429: ("Rate limit exceeded", "rate_limited", "1300"),
    500: ("Internal server error", "internal_server_error", "1000"),
    503: ("Service unavailable.", "internal_server_error", "1000"),
}


class Refusal(Exception):
    """A call that gets no answer: a status, a body, and the content type of that body."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body
        self.headers = headers or {}

    @property
    def content_type(self) -> str:
        """`text/html` for a page, `application/json` for an object."""
        return "text/html" if isinstance(self.body, str) else "application/json"


def envelope(status: int, message: Any, kind: str, code: str | None) -> dict[str, Any]:
    """Mistral's usual error object, with its keys in their order."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code, "raw_status_code": status}


def bad_request(message: str, kind: str, code: str) -> Refusal:
    """400: the request is well formed and still makes no sense."""
    return Refusal(400, envelope(400, message, kind, code))


def invalid(kind: str, where: list[str | int], message: str, value: Any) -> dict[str, Any]:
    """One item of the `detail` of a 422: what is wrong, and where in the body."""
    return {"type": kind, "loc": ["body", *where], "msg": message, "input": value}


def stream_error() -> dict[str, Any]:
    """The error object that may come in the middle of a stream."""
    message, kind, code = _ENVELOPES[503]
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


def on_request(status: int, shape: str, body: dict[str, Any]) -> Refusal:
    """The refusal that a behaviour asked for. `body` is the request, of which a 422 repeats a part."""
    message, kind, code = _ENVELOPES.get(status, _ENVELOPES[500 if status >= 500 else 400])
    detail = [invalid("missing", ["messages"], "Field required", {"model": body.get("model")})]
    if shape == "standard":
        shape = {401: "string", 404: "string", 422: "detail"}.get(status, "envelope")
    if shape == "html":
        page = f"<html>\r\n<head><title>{status}</title></head>\r\n<body><h1>{status}: {message}</h1></body>\r\n</html>"
        return Refusal(status, page)
    if shape == "gateway":
        return Refusal(status, {"message": "Requests rate limit exceeded" if status == 429 else message})
    if shape == "string":
        return Refusal(status, {"detail": message})
    if shape == "detail":
        return Refusal(status, {"detail": detail})
    if status == 422:
        return Refusal(status, envelope(422, {"detail": detail}, "invalid_request_error", None))
    return Refusal(status, envelope(status, message, kind, code))
