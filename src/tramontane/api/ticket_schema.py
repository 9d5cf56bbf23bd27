"""What may be asked of a ticket."""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from tramontane.api.schemas import invalid
from tramontane.settings import seconds

_LONGEST: Final = 24 * 3600.0


def _span(value: str | float) -> float:
    length = seconds(value)
    if not 1 <= length <= _LONGEST:
        raise ValueError("must be between 1 second and 24 hours")
    return length


class TicketForm(BaseModel):
    """How long it opens the events: an hour, if nothing else is said."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ttl: Annotated[str | float, AfterValidator(_span)] = 3600.0


TICKET_SCHEMA: Final = {
    "requestBody": {"required": False, "content": {"application/json": {"schema": TicketForm.model_json_schema()}}}
}


def read_ttl(body: bytes) -> float:
    """Seconds that a ticket is asked to last; no body asks for nothing. Raises InvalidInput naming the field."""
    try:
        return float(TicketForm.model_validate_json(body or b"{}").ttl)
    except ValidationError as error:
        raise invalid(error) from None
