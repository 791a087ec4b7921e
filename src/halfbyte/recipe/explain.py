"""Every key of the recipe as rows of key, default and sentence, read from the schema."""

from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from halfbyte.recipe.schema import Recipe


def every_key() -> list[tuple[str, str, str]]:
    """In the order of schema.py; a key of one kind of section names the kind."""
    return _rows(Recipe, "")


def _rows(section: type[BaseModel], above: str) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, field in section.model_fields.items():
        inner = _sections(field.annotation)
        if not inner:
            if name != "kind" or len(get_args(field.annotation)) > 1:
                rows.append((above + name, _default(field), _sentence(field)))
        elif len(inner) == 1:
            rows += _rows(inner[0], f"{above}{name}.")
        else:
            shared = set.intersection(*(set(kind.model_fields) for kind in inner)) - {"kind"}
            kinds = [get_args(kind.model_fields["kind"].annotation)[0] for kind in inner]
            rows.append((f"{above}{name}.kind", kinds[0], " ".join(f"`{k}`: {(c.__doc__ or '').strip()}" for k, c in zip(kinds, inner, strict=True))))
            rows += [
                (f"{above}{name}.{key}", _default(inner[0].model_fields[key]), _sentence(inner[0].model_fields[key]))
                for key in inner[0].model_fields
                if key in shared
            ]
            rows += _of_some_kinds(f"{above}{name}.", dict(zip(kinds, inner, strict=True)), shared)
    return rows


def _of_some_kinds(above: str, kinds: dict[str, type[BaseModel]], shared: set[str]) -> list[tuple[str, str, str]]:
    """Keys that only some kinds have; those of one meaning stand once, with the names of their kinds."""
    who: dict[tuple[str, str, str], list[str]] = {}
    for tag, kind in kinds.items():
        for key, field in kind.model_fields.items():
            if key not in shared and key != "kind":
                who.setdefault((key, _default(field), _sentence(field)), []).append(tag)
    return [(above + key, default, f"({', '.join(tags)}) {sentence}") for (key, default, sentence), tags in who.items()]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) is Annotated:
        return _sections(get_args(annotation)[0])
    parts = [annotation, *get_args(annotation)]
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(must be given)"
    if isinstance(field.default, str) and not field.default.isprintable():
        return repr(field.default)
    return "not given" if field.default is None else str(field.default)


def _sentence(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())
