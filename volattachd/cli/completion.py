"""Completion for bash, zsh and fish, by argcomplete: from the parser itself, with the daemon's own names.

The shell asks by running ``volattach`` with a variable set; nothing of this is imported otherwise. A daemon that cannot
be reached, or not soon, completes nothing: a shell that waits is worse than one that knows no names.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from volattachd.cli.exit_codes import UsageError
from volattachd.client.connection import Connection
from volattachd.client.protocol import ClientError
from volattachd.errors import VolattachError
from volattachd.model import UUID, VOLUME_ID

_PATIENCE = 2.0
#: argcomplete before 3.0 has no code for zsh of its own; zsh takes bash's. As with that of later ones, the text may be
#: read by a user's .zshrc, or be a file _volattach in fpath, whose first call is already a question.
_ZSH_AS_BASH = """\
#compdef volattach
(( $+functions[compdef] )) || {{ autoload -U +X compinit && compinit -u }}
autoload -U +X bashcompinit && bashcompinit
{bash}
[[ $zsh_eval_context != *func ]] || _bash_complete -o nospace -o default -o bashdefault -F _python_argcomplete
"""

AddressOf = Callable[[argparse.Namespace], str]


def shell_code(shell: str) -> str:
    """The lines that a shell reads once, to ask ``volattach`` from then on."""
    argcomplete = _argcomplete()
    if shell == "zsh" and not _knows_zsh():
        return _ZSH_AS_BASH.format(bash=argcomplete.shellcode(["volattach"], True, "bash"))
    return str(argcomplete.shellcode(["volattach"], True, shell))


def answer_shell(parser: argparse.ArgumentParser, address_of: AddressOf) -> None:
    """Tells the shell what may come next, and ends the process."""
    _add_completers(parser, address_of)
    _argcomplete().autocomplete(parser, always_complete_options=False)


def _argcomplete() -> Any:
    try:
        import argcomplete
    except ImportError:
        raise UsageError(
            "completion needs argcomplete, which is not installed",
            "apt install python3-argcomplete, or pip install 'volattachd[completion]'",
        ) from None
    return argcomplete


def _knows_zsh() -> bool:
    from importlib import metadata

    return int(metadata.version("argcomplete").partition(".")[0]) >= 3


def _add_completers(parser: argparse.ArgumentParser, address_of: AddressOf) -> None:
    """Gives each word that names something of the daemon a way to its names."""
    names = {
        "volume": _asking(address_of, _volumes),
        "name": _asking(address_of, lambda connection: [*_volumes(connection), *_attachments(connection)]),
        "attachment": _asking(address_of, _attachments),
        "method": lambda **_: _methods(),
        "words": lambda prefix, parsed_args, **_: _parameters(prefix, parsed_args, address_of),
    }
    for command, options in commands_of(parser).items():
        for action in options._actions:
            completer = names.get(action.dest)
            if completer is not None and (command, action.dest) != ("register", "volume"):
                action.completer = completer  # type: ignore[attr-defined]


def commands_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return found.choices


def _asking(address_of: AddressOf, names: Callable[[Connection], Iterable[str]]) -> Callable[..., list[str]]:
    def complete(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        try:
            with Connection(address_of(parsed_args), _PATIENCE) as connection:
                return list(names(connection))
        except (VolattachError, ClientError, UsageError):
            return []

    return complete


def _volumes(connection: Connection) -> list[str]:
    return _names(connection.call("list_volumes"), "volume", VOLUME_ID)


def _attachments(connection: Connection) -> list[str]:
    return _names(connection.call("list_attachments"), "attachment_id", UUID)


def _names(rows: Any, member: str, pattern: re.Pattern[str]) -> list[str]:
    """What the daemon names. The shell reads it, so a name that cannot be one is left out."""
    found = [row.get(member) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [name for name in found if isinstance(name, str) and pattern.fullmatch(name)]


def _methods() -> list[str]:
    from volattachd.api.methods import METHODS

    return [method.name for method in METHODS]


def _parameters(prefix: str, args: argparse.Namespace, address_of: AddressOf) -> list[str]:
    """``key=`` for what the method takes, and ``volume=NAME``."""
    from volattachd.api.methods import BY_NAME

    if prefix.startswith("volume="):
        return [f"volume={name}" for name in _asking(address_of, _volumes)(args)]
    method = BY_NAME.get(args.method)
    return [f"{param.name}=" for param in method.params] if method else []
