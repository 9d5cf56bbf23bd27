"""The models that the simulator knows."""

from dataclasses import dataclass
from typing import Any

_CREATED = 1762560000


@dataclass(frozen=True)
class Model:
    """One model and the other names it answers to."""

    id: str
    aliases: tuple[str, ...]
    context: int
    vision: bool = False
    reasoning: bool = False

    def card(self) -> dict[str, Any]:
        """The model as `GET /v1/models` shows it."""
        return {
            "id": self.id,
            "object": "model",
            "created": _CREATED,
            "owned_by": "mistralai",
            "capabilities": {
                "completion_chat": True,
                "function_calling": True,
                "reasoning": self.reasoning,
                "completion_fim": self.id.startswith("codestral"),
                "fine_tuning": False,
                "vision": self.vision,
                "ocr": False,
                "classification": False,
                "moderation": False,
                "audio": False,
            },
            "name": self.id,
            "description": f"Simulated {self.id}",
            "max_context_length": self.context,
            "aliases": list(self.aliases),
            "deprecation": None,
            "deprecation_replacement_model": None,
            "default_model_temperature": 0.3,
            "type": "base",
        }


MODELS = (
    Model("mistral-small-2603", ("mistral-small-latest", "mistral-small"), 131072, vision=True),
    Model("mistral-medium-2604", ("mistral-medium-latest", "mistral-medium"), 131072, vision=True),
    Model("mistral-large-2512", ("mistral-large-latest", "mistral-large"), 262144, vision=True),
    Model("magistral-small-2509", ("magistral-small-latest",), 131072, reasoning=True),
    Model("magistral-medium-2509", ("magistral-medium-latest",), 131072, reasoning=True),
    Model("ministral-3b-2512", ("ministral-3b-latest",), 131072),
    Model("ministral-8b-2512", ("ministral-8b-latest",), 131072),
    Model("codestral-2508", ("codestral-latest",), 262144),
    Model("devstral-small-2512", ("devstral-small-latest",), 262144),
    Model("open-mistral-nemo", ("open-mistral-nemo-2407", "mistral-tiny-latest"), 131072),
)

_BY_NAME = {name: model for model in MODELS for name in (model.id, *model.aliases)}


def find_model(name: str) -> Model | None:
    """The model of that id or alias, None when there is none."""
    return _BY_NAME.get(name)
