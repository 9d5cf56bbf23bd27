"""Values that fit a JSON schema, for structured answers and the arguments of tools."""

import random
from typing import Any

from tramontane.simulator import prose

_DEEPEST = 8


def fill(schema: Any, chance: random.Random, depth: int = 0) -> Any:
    """A value that a schema without `$ref` allows, as far as types, enums, properties, items and unions tell."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    if "const" in schema or schema.get("enum"):
        return schema.get("const", chance.choice(schema.get("enum") or [None]))
    union = next((schema[word] for word in ("anyOf", "oneOf", "allOf") if schema.get(word)), None)
    return fill(union[0], chance, depth + 1) if union else _typed(schema, chance, depth)


def _typed(schema: dict[str, Any], chance: random.Random, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties")
        parts = properties if isinstance(properties, dict) else {}
        return {key: fill(part, chance, depth + 1) for key, part in parts.items()}
    if kind == "array":
        return [fill(schema.get("items", {}), chance, depth + 1) for _ in range(max(2, schema.get("minItems", 0)))]
    plain = {"integer": chance.randrange(1, 100), "number": chance.randrange(1, 1000) / 10, "null": None}
    plain["boolean"] = chance.random() < 0.5
    return plain.get(kind, prose.name(chance))


def resolve(schema: Any, definitions: dict[str, Any] | None = None, depth: int = 0) -> Any:
    """The schema with every local `$ref` replaced by what it points at, down to a depth no answer needs."""
    if isinstance(schema, list):
        return [resolve(part, definitions, depth) for part in schema]
    if not isinstance(schema, dict) or depth > 2 * _DEEPEST:
        return schema
    definitions = definitions or schema.get("$defs") or {}
    if "$ref" in schema:
        return resolve(definitions.get(str(schema["$ref"]).rpartition("/")[2], {}), definitions, depth + 1)
    return {key: resolve(part, definitions, depth + 1) for key, part in schema.items() if key != "$defs"}
