"""What all commands share: options, exit statuses, how errors are told, Ctrl-C and closed pipes.

Each package's `__main__.py` has a `PROGRAM` and a parser, and calls `run_program`; nothing else decides how
an error looks or which exit status it has.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import logitstore
from logitstore.common.exit_status import EXIT_STATUSES, ExitStatus
from logitstore.common.extras import explain_missing
from logitstore.common.store_warning import StoreWarning
from logitstore.common.terminal import printable
from logitstore.common.whole_file import DISK_FULL_ERRNOS

TRACEBACK_VARIABLE = "PENUMBRA_TRACEBACK"
"""Set to anything, an error that nobody foresaw is shown with its traceback."""


@dataclass(frozen=True)
class Program:
    """One of the commands below `penumbra`."""

    name: str
    """The word after `penumbra`: "label"."""
    description: str
    extra: str
    """The optional dependencies that it needs: "label"."""
    examples: str = ""
    interrupted: str = "interrupted"
    """Said at Ctrl-C."""

    @property
    def title(self) -> str:
        return f"penumbra {self.name}".strip()

    @property
    def epilog(self) -> str:
        return f"{self.examples}\n{EXIT_STATUSES}" if self.examples else EXIT_STATUSES


class _Parser(argparse.ArgumentParser):
    """Refuses what it does not know itself: argparse leaves that to the program, which shows its own usage
    and not the subcommand's. `--out=~/x` is a place in the user's home, which shells leave to the program,
    whatever the option. Parsers of subcommands are of this class too."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))
        given = [_at_home(text) for text in (sys.argv[1:] if args is None else args)]
        found, unknown = super().parse_known_args(given, namespace)
        if unknown:
            options = [name for action in self._actions for name in action.option_strings]
            first = unknown[0].partition("=")[0]
            hint = f"; {nearest(first, options)}" if first.startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """An empty text or path, as an unset variable of the shell is, would be taken for one that was not
        given: `stop "$ID"` for a stop of whatever is at work. Types of our own decide for themselves."""
        if action.type in (None, Path) and action.nargs != argparse.PARSER and "" in arg_strings:
            raise argparse.ArgumentError(
                action, "it is empty, as an unset variable of the shell is; give a value, or leave it out"
            )
        return super()._get_values(action, arg_strings)  # pyright: ignore[reportAttributeAccessIssue]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Names the nearest choice of a subcommand or option; argparse names all and not the nearest."""
        if action.choices is not None and value not in action.choices:
            hint = nearest(str(value), [str(choice) for choice in action.choices])
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {hint}")


def _at_home(argument: str) -> str:
    """`--option=~/x` as a shell would give `--option ~/x`."""
    option, separator, value = argument.partition("=")
    if separator and option.startswith("--") and (value == "~" or value.startswith("~/")):
        return f"{option}={os.path.expanduser(value)}"
    return argument


def new_parser(program: Program) -> argparse.ArgumentParser:
    """The parser of a program, with the options that all programs have."""
    parser = _Parser(
        prog=program.title,
        description=program.description,
        epilog=program.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"penumbra {logitstore.__version__} ({program.name})"
    )
    return parser


def run_program(program: Program, command: Callable[[], int]) -> int:
    """The exit status of `command`, every error told in one line on standard error.

    An error's `exit_status` attribute says its status; other errors have the status of their kind. One that
    nobody foresaw is a defect: its traceback goes into a file that the line names.
    """
    _open_closed_streams()
    _write_any_text()
    warnings.showwarning = partial(_show_warning, warnings.showwarning, program)
    try:
        return _run(program, command)
    except KeyboardInterrupt:  # also while an error is told
        print(f"{program.title}: {program.interrupted}", file=sys.stderr)
        return ExitStatus.INTERRUPTED


def _open_closed_streams() -> None:
    """Begun with a closed stream (`>&-`), a program would hand its number to the next file that it opens, a
    shard perhaps, and there would go what a library prints."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the program


def _write_any_text() -> None:
    """Where the locale cannot write all of Unicode (Latin-1, a Windows console), an id or a token must not
    end a command: files and pipes get UTF-8, as JSON is, and a terminal an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            if stream.isatty():
                stream.reconfigure(errors="backslashreplace")
            else:
                stream.reconfigure(encoding="utf-8")


def _run(program: Program, command: Callable[[], int]) -> int:
    try:
        try:
            return int(command())
        finally:  # also after `--help`; a closed pipe must not first show when Python ends
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.DONE
    except ModuleNotFoundError as error:
        try:
            text = explain_missing(error, program.extra)
        except ModuleNotFoundError:  # a module of our own
            return _defect(program, error)
        return _told(program, text, ExitStatus.WRONG)
    except Exception as error:  # noqa: BLE001
        status = _status_of(error)
        if status is None:
            return _defect(program, error)
        return _told(program, _sentence(error), status)


_FRONT = Program(name="", description="", extra="")


def run_named(
    programs: Mapping[str, tuple[str, str]], argv: Sequence[str], load: Callable[[str], Callable[..., int]]
) -> int:
    """Hand the arguments after the first to the program that the first names; `programs` maps each to a
    module and a summary, `load` gives a module's `main`."""
    width = max(map(len, programs))
    table = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in programs.items())
    usage = f"usage: penumbra [--version] [--help] COMMAND ...\n\n{table}\n\n{EXIT_STATUSES}"
    if not argv:
        print(usage, file=sys.stderr)
        return ExitStatus.WRONG
    answers = {"-h": usage, "--help": usage, "--version": f"penumbra {logitstore.__version__}"}
    if argv[0] in answers:
        return run_program(_FRONT, lambda: print(answers[argv[0]]) or ExitStatus.DONE)
    if argv[0] not in programs:
        print(
            f"{usage}\n\npenumbra: error: no command {argv[0]!r}; {nearest(argv[0], programs)}",
            file=sys.stderr,
        )
        return ExitStatus.WRONG
    return load(programs[argv[0]][0])(argv[1:])


def nearest(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """ "did you mean 'x'?", or which there are."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"


def _status_of(error: Exception) -> int | None:
    """The status of an error that was raised on purpose, or by the system; None for a defect."""
    own = getattr(error, "exit_status", None)
    if own is not None:
        return int(own)
    if isinstance(error, TimeoutError):
        return ExitStatus.FAILED
    if isinstance(error, OSError):
        is_full = error.errno in (*DISK_FULL_ERRNOS, errno.EFBIG)
        return ExitStatus.FAILED if is_full else ExitStatus.WRONG
    # A plain ValueError or RuntimeError with a sentence is how a library refuses what it was given.
    if isinstance(error, (ValueError, RuntimeError)) and not isinstance(
        error, (UnicodeError, NotImplementedError, RecursionError)
    ):
        return ExitStatus.WRONG if isinstance(error, ValueError) else ExitStatus.FAILED
    return None


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}; make room there, or write to another place"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        where = "" if error.filename is None else f"{error.filename}: "
        return (
            f"{where}the file is larger than its file system, or this process (ulimit -f), allows; write to "
            "another place, or raise the limit"
        )
    if isinstance(error, OSError) and error.strerror and error.filename is not None and not error.args[2:]:
        return f"{error.filename}: {error.strerror}; choose another place, or correct its rights"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path, its rights and the room on the disk"
    return " ".join(str(error).split()) if "\n" in str(error) else str(error)


def _told(program: Program, text: str, status: int) -> int:
    print(printable(f"{program.title}: error: {text}"), file=sys.stderr)
    return status


def _show_warning(
    usual: Callable[..., None], program: Program, message: Warning | str, category: type[Warning], *place: Any
) -> None:
    """Warnings about a store as a line; others, of libraries, as Python shows them."""
    if issubclass(category, StoreWarning):
        print(printable(f"{program.title}: warning: {message}"), file=sys.stderr)
    else:
        usual(message, category, *place)


def _defect(program: Program, error: Exception) -> int:
    if os.environ.get(TRACEBACK_VARIABLE):
        raise error
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix="penumbra-", suffix=".log", delete=False
    ) as file:
        traceback.print_exception(error, file=file)
    text = f"{type(error).__name__}: {_sentence(error)}"
    where = Path(file.name)
    return _told(
        program, f"this is a defect of penumbra ({text}); please report it with {where}", ExitStatus.FAILED
    )
