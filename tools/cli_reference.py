"""Writes docs/cli.md, the command reference, from the command line itself: `python tools/cli_reference.py`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo

from visq.cli.app import app

REFERENCE = Path(__file__).parents[1] / "docs" / "cli.md"

HEAD = """# Command reference

The commands themselves are the source of this page: `python tools/cli_reference.py` writes it, and a test compares
the two. `visq COMMAND --help` shows the same.

`visq` ends with 0 on success, 1 on an error, 2 on wrong usage, 130 on Ctrl-C, 143 on SIGTERM, and 3 where
the self-check of `quantize --fail-below` is worse than asked for. An error is one line on stderr.
`python -m visq` is the same command.
"""

#: The placeholder of a value by its type.
PLACEHOLDERS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command, as its function declares it."""

    name: str
    placeholder: str
    is_argument: bool
    required: bool
    default: Any
    help: str

    @property
    def usage(self) -> str:
        """Returns what a usage line shows: `--model TEXT`, `IMAGE...`, `[NAME]`."""
        text = self.placeholder if self.is_argument else f"{self.name} {self.placeholder}".strip()
        return text if self.required else f"[{text}]"

    @property
    def row(self) -> str:
        """Returns the line of the table of options."""
        absent = self.default is None or self.default is False or self.default == () or self.required
        shown = "" if absent else f"`{self.name.partition('/')[0] if self.default is True else self.default}`"
        text = " ".join(self.help.split()).replace("|", "\\|")
        return f"| `{self.usage.strip('[]')}` | {'required' if self.required else shown} | {text} |"


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """Returns the arguments and options of a command in the order of its signature."""
    hints = get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(hints[name])[:2]
        is_argument = isinstance(info, ArgumentInfo)
        default = parameter.default
        found.append(
            Parameter(
                # Inside `Annotated` typer takes the first positional argument of `Option` for a default.
                name=" ".join(map(str, filter(None, (info.default, *(info.param_decls or ()))))) or name,
                placeholder=info.metavar or (name.upper() if is_argument else placeholder(kind)),
                is_argument=is_argument,
                required=default is inspect.Parameter.empty,
                default=default,
                help=info.help or "",
            )
        )
    return found


def placeholder(kind: Any) -> str:
    """Returns the placeholder of an option's value, empty for a switch."""
    if get_origin(kind) in (Union, types.UnionType, list):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return "" if kind is bool else PLACEHOLDERS[kind]


def table(found: list[Parameter]) -> str:
    return "\n".join(["| option | default | |", "|---|---|---|", *(parameter.row for parameter in found)])


def section(name: str, function: Callable[..., Any]) -> str:
    """Returns the section of one command: how to call it, what it does, its options."""
    found = parameters(function)
    usage = " ".join(["visq", name, *(p.usage for p in found if p.is_argument or p.required), "[OPTIONS]"])
    return f"## visq {name}\n\n    {usage}\n\n{inspect.cleandoc(function.__doc__ or '')}\n\n{table(found)}\n"


def reference() -> str:
    """Returns the page: the options of `visq` itself, an index, and a section for each command."""
    commands = {str(command.name): command.callback for command in app.registered_commands}
    first_lines = {
        name: inspect.cleandoc(function.__doc__ or "").split("\n\n")[0] for name, function in commands.items()
    }
    index = [f"| [`{name}`](#visq-{name}) | {' '.join(line.split())} |" for name, line in first_lines.items()]
    return "\n".join(
        [
            HEAD,
            "\n".join(["| command | what it does |", "|---|---|", *index, ""]),
            f"Options of `visq` itself:\n\n{table(parameters(app.registered_callback.callback))}\n",
            *(section(name, function) for name, function in commands.items()),
        ]
    )


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    print(REFERENCE)
