"""StructuredOutputsParams: the form that an answer has to have."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.foreign.keywords import no_effect, take_all
from tilewise.ignored import LOG, Ignored
from tilewise.option import checked, switch, texts


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _text_or_dict(value: Any) -> bool:
    return isinstance(value, (str, dict))


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """The form that an answer has to have: exactly one of the first six fields. Names and meanings are vLLM's.

    An unknown keyword, none or several forms, or a value of the wrong type raises InvalidRequest. Whether a schema,
    pattern or grammar can be followed shows when a request with it is prepared.
    """

    json: str | dict[str, Any] | None = checked(None, "a JSON schema, as text or as a dict", _text_or_dict)
    """A JSON schema, as text or as a dict; keys come in the order of its `properties`."""
    regex: str | None = checked(None, "a string", _text)
    """The whole answer matches it. Rust's syntax; `\\d` is 0 to 9. Word boundaries, look-around and back-references
    cannot be followed: they are left out, and named."""
    choice: list[str] | tuple[str, ...] | None = checked(
        None,
        "a list of strings that are not empty",
        lambda value: value and texts(value),
        prepare=lambda value: tuple(value) if isinstance(value, list) else value,
    )
    """The answer is one of these."""
    grammar: str | None = checked(None, "a string", _text)
    """A context-free grammar: Lark (its first rule is `start`), or GBNF (`root ::= ...`)."""
    json_object: bool | None = switch(None)
    """True: any JSON object."""
    structural_tag: str | dict[str, Any] | None = checked(None, "a structural tag, as text or as a dict", _text_or_dict)
    """Free text with tags whose contents have a form: `structures` and `triggers`, or `format`; as text or a dict."""
    whitespace_pattern: str | None = checked(None, "a string", _text)
    """Regex of the white space that may stand between two parts of JSON; one blank by default."""
    disable_any_whitespace: bool = switch()
    """True: JSON has no white space."""
    disable_additional_properties: bool | None = switch(None)
    """False: objects that list their properties may have others, too, unless the schema says `additionalProperties:
    false`. None and True: they may not, unless it says that they may. What a schema combines counts as one object."""

    def __new__(cls, **options: Any) -> StructuredOutputsParams:
        known = [spec.name for spec in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownOption.named(name, known, cls.__name__)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kept = field.metadata["rule"].kept(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, kept)
        given = [name for name in _FORMS if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise InvalidRequest(
                "You can only use one kind of structured outputs constraint but multiple are specified: "
                f"{', '.join(given)}."
            )
        if not given:
            raise InvalidRequest(
                "You must use one kind of structured outputs constraint but none are specified: give one of "
                f"{', '.join(_FORMS)}."
            )
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise InvalidRequest("Give either whitespace_pattern or disable_any_whitespace, not both.")


_FORMS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


class GuidedDecodingParams(StructuredOutputsParams):
    """The name of StructuredOutputsParams in vLLM before 0.11; which library follows a form was a field of it."""

    def __new__(cls, **options: Any) -> StructuredOutputsParams:  # type: ignore[misc]
        return super().__new__(cls, **{name: options[name] for name in options if name not in _BACKEND})

    def __init__(self, **options: Any) -> None:
        ignored = Ignored()
        take_all({name: options.pop(name) for name in [*options] if name in _BACKEND}, _BACKEND, ignored)
        super().__init__(**options)
        LOG.take(ignored.reasons, "GuidedDecodingParams")

    @classmethod
    def from_optional(cls, **options: Any) -> GuidedDecodingParams | None:
        """Make one of the options that are not None; return None if these name no form."""
        given = {name: value for name, value in options.items() if value is not None}
        return cls(**given) if given.keys() & set(_FORMS) else None


_ONE_LIBRARY = "one library follows all forms"
_BACKEND = {
    "backend": no_effect(_ONE_LIBRARY, "auto"),
    "backend_was_auto": no_effect(_ONE_LIBRARY, False),
    "disable_fallback": no_effect(_ONE_LIBRARY, False),
}
