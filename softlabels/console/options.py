"""Flags of both command lines: made from config dataclasses, shown under headings, known by other tools' names, too.

A field says under which heading it stands by its type: `lr: Schedule[float]`, where `Schedule = Annotated[T,
Group("Schedule")]`. The string under it is its help.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from softlabels.core.settings import Group, field_help, flag_of

F = TypeVar("F", bound=Callable[..., Any])

UNGROUPED = "Options"
SETTINGS = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
ALIASES = {
    "--out": ("-o", "--output-dir"),
    "--licence": ("--license",),
    "--seq-len": ("--max-length", "--max-seq-length"),
    "--lr": ("--learning-rate",),
    "--steps": ("--max-steps",),
    "--epochs": ("--num-train-epochs",),
    "--warmup": ("--warmup-steps",),
    "--beta1": ("--adam-beta1",),
    "--beta2": ("--adam-beta2",),
    "--clip": ("--max-grad-norm",),
    "--log-every": ("--logging-steps",),
    "--eval-every": ("--eval-steps",),
    "--checkpoint-every": ("--save-steps",),
    "--keep-last": ("--save-total-limit",),
    "--dtype": ("--torch-dtype",),
}
"""What other tools call our flags: taken by every command that has the flag, shown by none."""
ALIASES_LINE = (
    "Flags of transformers and TRL that mean the same are taken, too (--output-dir or -o for --out, --learning-rate, "
    "--max-steps, --max-length, …), and --license for --licence."
)
"""The one place where help says so."""
OTHERWISE = {
    "--per-device-train-batch-size": (
        "--batch-size",
        "is the rows of a whole optimiser step, on all devices together",
    ),
    "--gradient-accumulation-steps": (
        "--accumulate",
        "splits the rows of --batch-size into so many micro-batches, and leaves the step as large as it was",
    ),
}
"""Flags of other tools that have no equal here: what there is instead, and how it differs."""


class Seed(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A whole number that every generator of random numbers takes, and every reader of a store."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Check."""
        number = click.INT.convert(value, param, ctx)
        if not 0 <= number < 2**63:
            self.fail(f"{number}: expected 0 or more, and less than 2**63", param, ctx)
        return int(number)


class Option(click.Option):
    """An option that knows the heading it stands under."""

    def __init__(self, *args: Any, group: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """A command whose help has headings, and whose flags go by their aliases, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", SETTINGS)
        super().__init__(*args, **kwargs)

    def make_parser(self, ctx: click.Context) -> Any:
        """A parser that knows each flag's aliases."""
        parser = super().make_parser(ctx)
        for parameter in self.params:
            names = [a for flag in parameter.opts for a in ALIASES.get(flag, ())]
            if names:
                also = copy.copy(parameter)
                also.opts = names
                also.add_to_parser(parser, ctx)
        return parser

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; a flag of another tool that means something else here is explained."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as e:
            flag, how = OTHERWISE.get(e.option_name, ("", ""))
            if not any(flag in p.opts for p in self.params):
                raise
            message = f"No such option: {e.option_name}; {flag} {how}."
            raise click.NoSuchOption(e.option_name, message, ctx=ctx) from e

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags under their headings, in order of first appearance."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                heading = getattr(parameter, "group", None) or UNGROUPED
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def config_options(cls: type, *, file: bool = True) -> Callable[[F], F]:
    """One `--flag` for each field of a config dataclass, with its type, default, heading and docstring.

    Without a `file` of settings, a field that has no default is a flag that must be given.
    """
    hints = get_type_hints(cls, include_extras=True)
    helps = field_help(cls)

    def decorate(command: F) -> F:
        for field in reversed(dataclasses.fields(cls)):
            group, hint = _group(hints[field.name])
            kind, multiple = _click_type(hint)
            flag = flag_of(field.name)
            text = helps[field.name].rstrip(".")
            default = field.default
            if default is True:
                flag, default = f"{flag}/{flag_of(field.name, off=True)}", "on"
            given = default is not None and default is not False and default != ()
            if default is not dataclasses.MISSING and given:
                several = default if isinstance(default, tuple) else (default,)
                shown = ", ".join(f"{d:g}" if isinstance(d, float) else str(d) for d in several)
                text += f" (default: {shown})"
            settings: dict[str, Any] = {"help": text + ".", "group": group, "cls": Option}
            settings["required"] = not file and default is dataclasses.MISSING
            if kind is bool:
                settings |= {"is_flag": True, "default": None}
            else:
                settings |= {"type": kind, "multiple": multiple}
            command = click.option(flag, field.name, **settings)(command)
        return command

    return decorate


def _group(hint: Any) -> tuple[str | None, Any]:
    """The heading of an annotated type, and the type."""
    if get_origin(hint) is not Annotated:
        return None, hint
    plain, *marks = get_args(hint)
    return next((m.heading for m in marks if isinstance(m, Group)), None), plain


def _click_type(hint: Any) -> tuple[Any, bool]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _click_type(next(a for a in args if a is not type(None)))
    if origin is tuple:
        return args[0], True
    return hint, False
