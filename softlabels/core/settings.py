"""Frozen config dataclasses from flags, TOML or Python: one reader for builder and trainer."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import tomllib
from collections.abc import Mapping, Sequence, Set
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from softlabels.errors import ConfigError

C = TypeVar("C")

OUT = "out"
"""Key of a config file that is the command's own and no part of what is recorded: where it writes."""
LOCAL_ONLY = "this is written to, or changed, in a local folder only; `softlabels push` and `pull` copy a store"


@dataclass(frozen=True)
class Group:
    """Marks a config's field (`Annotated[T, Group("Loss")]`): the heading under which `--help` shows its flag."""

    heading: str


def flag_of(field: str, *, off: bool = False) -> str:
    """The flag of a config's field; `off` is that which switches it off."""
    return f"--{'no-' if off else ''}{field.replace('_', '-')}"


def flags_of(cls: type, values: Mapping[str, Any]) -> list[str]:
    """The words of a command line that make a config of these values, as `to_dict` gives them or JSON keeps them.

    What is at its default is left out.
    """
    words: list[str] = []
    for field in fields(cls):
        value = values.get(field.name)
        every = tuple(value) if isinstance(value, list | tuple) else (value,)
        if value is None or field.default in (value, every):
            continue
        if isinstance(value, bool):
            words.append(flag_of(field.name, off=not value))
            continue
        for one in every:
            words += [flag_of(field.name), _spelled(one)]
    return words


def _spelled(value: object) -> str:
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def read_toml(toml: Path) -> dict[str, Any]:
    """The keys of a config file; `ConfigError`, with line and column, if it is not TOML or cannot be read."""
    try:
        return tomllib.loads(toml.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{toml}: {e.strerror}") from e
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"{toml}: not TOML: {e}") from e


def place_from(toml: Path | None, flag: Path | str | None) -> Path | str:
    """As `out_from`, where an address (a `str`) will do, too."""
    if flag is None and toml is not None and "://" in str(value := read_toml(toml).get(OUT)):
        return str(value)
    return flag if isinstance(flag, str) else out_from(toml, flag)


def out_from(toml: Path | None, flag: Path | None) -> Path:
    """Where a command writes: `--out`, or the key `out` of the config file.

    Raises:
        ConfigError: neither is given, or the key is no local path, or one in a store.
    """
    out = out_if_said(toml, flag)
    if out is None:
        raise ConfigError("--out is missing (or 'out' in the config file)")
    return out


def out_if_said(toml: Path | None, flag: Path | None) -> Path | None:
    """The same, or None if neither is given.

    Raises:
        ConfigError: the key is no local path, or one in a store.
    """
    if flag is not None:
        return flag
    value = None if toml is None else read_toml(toml).get(OUT)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{toml}: key 'out': {value!r}, expected the path of a folder")
    if "://" in value:
        raise ConfigError(f"{toml}: key 'out': {value!r}: {LOCAL_ONLY}")
    if trouble := in_store(Path(value)):
        raise ConfigError(f"{toml}: key 'out': {trouble}")
    return Path(value)


def in_store(out: Path) -> str | None:
    """Why not to write to a place, if it lies in a store: there it would be no part of it, and `verify` reports it."""
    for folder in out.absolute().resolve().parents:
        if any(_is_record(folder / name) for name in ("plan.json", "manifest.json")):
            return f"{out}: lies in the store {folder}; choose a place outside of it"
    return None


def _is_record(path: Path) -> bool:
    from softlabels.core.records import FORMAT

    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def from_sources(
    cls: type[C],
    toml: Path | None,
    flags: Mapping[str, Any],
    *,
    either: Sequence[tuple[str, str]] = (),
    base: Mapping[str, Any] | None = None,
    aside: Sequence[str] = (),
) -> C:
    """Flags over TOML over defaults; a flag that is None or empty was not given.

    Args:
        either: pairs of fields that say one thing in two ways; a flag for one also wins over a file's other.
        base: values that stand in for the config's own defaults.
        aside: other keys of the file, which the caller reads.

    Raises:
        ConfigError: unreadable TOML, an unknown key, a wrong type, a missing field, both fields of a pair, an
            impossible value; what is wrong in the file is said with its name and the key.
    """
    known = list(cls.__dataclass_fields__)  # type: ignore[attr-defined]
    written = {} if toml is None else read_toml(toml)
    for name in (OUT, *aside):
        written.pop(name, None)
    for name in sorted(written.keys() - known):
        near = get_close_matches(name.replace("-", "_").lower(), known, n=1)
        others = ", ".join([OUT, *aside, *known])
        meant = f"did you mean {near[0]!r}?" if near else f"known: {others}"
        raise ConfigError(f"{toml}: unknown key {name!r}; {meant}")
    given = {k: v for k, v in flags.items() if v is not None and v != ()}
    for one, other in [*either, *((b, a) for a, b in either)]:
        if one in given:
            written.pop(other, None)
    values = dict(base or {}) | written | given
    for one, other in either:
        if one in values and other in values:
            raise ConfigError(f"--{one} and --{other} say the same in two ways; give one")
    for field in fields(cls):  # type: ignore[arg-type]
        name = field.name
        if field.default is MISSING and name not in values:
            raise ConfigError(f"{flag_of(name)} is missing (or {name!r} in the config file)")
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as e:
        if isinstance(e.__cause__, ConfigError):  # from __post_init__: it names the flag
            raise _placed(e.__cause__, toml, written.keys() - given) from None
        what, _, where = str(e).replace("array", "list").partition(" - at `$.")
        key = re.split(r"[`.\[]", where)[0]
        raise ConfigError(f"{toml or 'config'}: key {key!r}: {what[:1].lower()}{what[1:]}") from e


def field_help(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, of those that it derives from first."""
    found = {}
    for part in reversed(cls.__mro__):
        if not vars(part).get("__annotations__"):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        body = tree.body[0].body  # type: ignore[attr-defined]
        for field, doc in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                assert isinstance(field.target, ast.Name)
                assert isinstance(doc.value, ast.Constant)
                found[field.target.id] = " ".join(str(doc.value.value).replace("`", "").split())
    return found


def _placed(error: ConfigError, toml: Path | None, keys: Set[str]) -> ConfigError:
    """The error of a field's value; where the value is from the file, with the file and the key."""
    named = re.match(r"--([a-z0-9-]+)", str(error))
    key = named[1].replace("-", "_") if named else None
    return ConfigError(f"{toml}: key {key!r}: {error}") if key in keys else error


def check_at_least(config: object, **lowest: int) -> None:
    """Refuse, naming the flag, whole numbers below their lowest or beyond 64 bits; None passes."""
    for name, low in lowest.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise ConfigError(f"{flag_of(name)} {value}: expected at least {low}")
        if value is not None and value >= 2**63:
            raise ConfigError(f"{flag_of(name)} {value}: expected less than 2**63")


def check_fits(config: object, **expected: tuple[bool, str]) -> None:
    """Refuse values that do not fit; of each field, whether its value does, and what would.

    Raises:
        ConfigError: names the flag.
    """
    for name, (fits, what) in expected.items():
        if not fits:
            raise ConfigError(f"{flag_of(name)} {getattr(config, name)!r}: expected {what}")
