"""Settings as fields of frozen dataclasses: help text, default, how text becomes a value, and what the value decides.

The command line, Python keywords and YAML keys are derived from these fields, and all of them go through `read`: text
is parsed once, there; whatever is behind it works with typed values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, get_args, get_type_hints

from e2bench.errors import E2BenchError, UnknownName

SETTING = "setting"  # key of a field's metadata


@dataclass(frozen=True)
class Setting:
    """What is known of one setting.

    help: one sentence for `--help` and the docs.
    text: the default as a user would write it; of settings without `parse` the default itself.
    parse: text to value; None where the field's type says it (text, whole number, path, yes or no).
    choices: the names that are possible, () for any.    minimum: of a number.
    lines: the entry of run.json's `resolved` with which this setting only chooses which lines there are; None: the
        setting decides a line's value.
    flags: names on the command line where they are not the field's.    panel: group in `--help`.
    """

    help: str
    text: Any
    parse: Callable[[str], Any] | None = None
    choices: Sequence[str] = ()
    minimum: int | None = None
    lines: str | None = None
    flags: tuple[str, ...] = ()
    panel: str | None = None

    def checked(self, name: str, value: Any) -> Any:
        """The value itself. Raises UnknownName or E2BenchError where it is none of the possible ones."""
        if self.choices and isinstance(value, str) and value not in self.choices:
            raise UnknownName(name.replace("_", " "), value, list(self.choices))
        if self.minimum is not None and isinstance(value, int) and value < self.minimum:
            raise E2BenchError(f"{flag(name)} {value} is not possible; it must be at least {self.minimum}")
        return value


def setting(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field that is a setting. default: as a user would write it, so text where there is a `parse`."""
    known = Setting(help, default, **about)
    value = known.parse(default) if known.parse and isinstance(default, str) else default
    return field(default=value, metadata={SETTING: known})


_named: dict[type, dict[str, tuple[Field[Any], Setting, Any]]] = {}


@dataclass(frozen=True)
class Settings:
    """Base of dataclasses whose fields are settings.    given: settings as they were given, by name.

    A field whose name the class has another use for ends in an underscore, which its users do not see.
    """

    given: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    @classmethod
    def named(cls) -> dict[str, tuple[Field[Any], Setting, Any]]:
        """Name: field, setting and type of every setting, in order of declaration."""
        if cls not in _named:  # resolving types takes milliseconds, and every command asks
            hints = get_type_hints(cls)
            known = (f for f in fields(cls) if SETTING in f.metadata)
            _named[cls] = {f.name.rstrip("_"): (f, f.metadata[SETTING], hints[f.name]) for f in known}
        return _named[cls]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Settings of text or typed values by name; names may have dashes. A list stands for its comma-separated text.

        Raises UnknownName for another name, E2BenchError for a value that is not possible.
        """
        known, typed, given = cls.named(), {}, {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name not in known:
                raise UnknownName(f"setting of {cls.title()}", key, list(known))
            field_, about, hint = known[name]
            text = _plain(hint, name, value, parsed=about.parse is not None)
            said = value if isinstance(value, str) else text  # an empty path's text is a dot
            if isinstance(said, str) and not said.strip(" ,"):
                raise E2BenchError(f"{flag(name)} is empty; give a value, or leave it out")
            is_text = about.parse is not None and isinstance(text, str)
            typed[field_.name] = about.checked(name, _parsed(name, about, text) if is_text else text)
            given[name] = text
        return cls(**typed, given=given)

    def replaced(self, **changes: Any) -> Self:
        """The same with other typed values, which then count as given so."""
        return replace(self, **changes, given={k: v for k, v in self.given.items() if k not in changes})

    @classmethod
    def title(cls) -> str:
        """What the settings belong to, in words."""
        return cls.__name__.lower()

    def as_given(self, *, defaults: bool) -> dict[str, Any]:
        """Settings as they were given, and with `defaults` those that were not; None is left out."""
        shown = {}
        for name, (field_, about, _) in self.named().items():
            value = getattr(self, field_.name)
            if name in self.given:
                value = self.given[name]
            elif value == field_.default:
                value = about.text
            elif about.parse is not None and value is not None:
                value = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if value is not None and (defaults or value != about.text):
                shown[name] = value
        return shown


def _plain(hint: Any, name: str, value: Any, *, parsed: bool) -> Any:
    """A value as the command line's parser gives it: text for what has text there, a path for a path."""
    kinds = get_args(hint) or (hint,)
    if value is None and (type(None) in kinds or parsed):
        return None
    if parsed or str in kinds:
        if isinstance(value, bool):
            raise _wrong(name, value, "text")
        if isinstance(value, Sequence) and not isinstance(value, str):
            return ",".join(map(str, value))
        return str(value)
    if Path in kinds and isinstance(value, str | Path):
        return Path(value)
    if type(value) in kinds:
        return value
    raise _wrong(name, value, " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds))


def _parsed(name: str, about: Setting, text: str) -> Any:
    assert about.parse is not None
    try:
        return about.parse(text)
    except E2BenchError as error:
        raise E2BenchError(f"{flag(name)}: {error}") from None


def _wrong(name: str, value: Any, wanted: str) -> E2BenchError:
    return E2BenchError(f"{name} is {value!r}; it must be {wanted}")


def flag(name: str) -> str:
    """`max_windows` as on the command line: `--max-windows`."""
    return f"--{name.replace('_', '-')}"
