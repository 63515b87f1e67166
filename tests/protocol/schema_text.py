"""How docs/protocol.md writes a field's type and limits, derived from the pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, get_origin

from pydantic import TypeAdapter

from protocol import bounds
from protocol.messages import MESSAGE

SCHEMA = MESSAGE.json_schema(ref_template="{model}")
DEFINITIONS: dict[str, dict[str, Any]] = SCHEMA["$defs"]
MESSAGES: dict[str, dict[str, Any]] = {
    name: DEFINITIONS[ref] for name, ref in SCHEMA["discriminator"]["mapping"].items()
}
RECORDS: dict[str, dict[str, Any]] = {
    name: schema for name, schema in DEFINITIONS.items() if "properties" in schema and schema not in MESSAGES.values()
}
ENUMS: dict[str, list[str]] = {name: schema["enum"] for name, schema in DEFINITIONS.items() if "enum" in schema}
TYPES: dict[str, Any] = {
    TypeAdapter(alias).json_schema()["bound"]: alias
    for name, alias in vars(bounds).items()
    if get_origin(alias) is Annotated and name != "Digest"
}
_PLAIN = {"integer": "int", "number": "float", "boolean": "bool"}


def fields_of(schema: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return (type, default) of each field but ``type``, as the documentation writes them."""
    return {
        name: (type_text(field), default_text(name, field, schema))
        for name, field in schema["properties"].items()
        if name != "type"
    }


def type_text(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        (inner,) = (option for option in field["anyOf"] if option != {"type": "null"})
        return type_text(inner)
    if "bound" in field:
        return str(field["bound"])
    if "$ref" in field:
        return f"{field['$ref']}"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type")
    if kind == "string":
        return _string(field)
    if kind == "array":
        return f"list of {type_text(field['items'])}" + _bound(field, "maxItems", ", at most {}")
    if kind == "object":
        values = field["additionalProperties"]
        inner = "any value" if values is True else type_text(values)
        return f"map of {inner}" + _bound(field, "maxProperties", ", at most {}")
    return (
        _PLAIN[str(kind)]
        + _bound(field, "minimum", ", ≥ {}")
        + _bound(field, "exclusiveMinimum", ", > {}")
        + _bound(field, "maximum", ", ≤ {}")
    )


def default_text(name: str, field: dict[str, Any], schema: dict[str, Any]) -> str:
    if name in schema.get("required", []):
        return "required"
    default = field.get("default")
    if default is None and "anyOf" in field:
        return "absent"
    if isinstance(default, dict) and default:
        return "its defaults"
    if default in ("", [], {}, None):
        return "empty"
    return f"`{str(default).lower()}`" if isinstance(default, bool | str) else str(default)


def _string(field: dict[str, Any]) -> str:
    if field.get("format") == "binary":
        return "bytes"
    if "pattern" in field:
        return "digest"
    low, high = field.get("minLength"), field.get("maxLength")
    if low and high:
        return f"text, {low}–{high} characters"  # noqa: RUF001  # a range is written with a dash
    return f"text, at most {high} characters" if high else "text"


def values_text(alias: Any) -> str:
    """Return which values a type of ``protocol.bounds`` takes, as the page writes it; "" where words must say it."""
    schema = TypeAdapter(alias).json_schema()
    if "minimum" in schema:
        return f"{_number(schema['minimum'])} to {_number(schema['maximum'])}"
    if "maxLength" in schema:
        return f"{schema.get('minLength', 0)} to {schema['maxLength']} characters"
    if schema["type"] == "string":
        kept = len(TypeAdapter(alias).validate_python("x" * 100_000))
        return f"any, cut to {kept} characters"
    return ""


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bound(field: dict[str, Any], key: str, form: str) -> str:
    return form.format(field[key]) if key in field else ""
