"""The command line: it parses, calls a verb and turns errors into exit codes. Nothing heavy is imported before that."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import io
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType, ModuleType
from typing import NoReturn

from convsmith.errors import EndedElsewhere, RunFailed, Stopped, Terminated, UserError, nearest
from convsmith.launch import Place, place
from convsmith.terminal import say, say_lines
from convsmith.verbs import __path__ as _PACKAGE
from convsmith.verbs.parser import Parser

TOGETHER = ("train", "resume")  # the verbs that torchrun may start in several processes


@functools.cache
def verbs() -> dict[str, ModuleType]:
    """Every verb by its name, in the order of `PLACE`: the modules of `convsmith.verbs` that have a `LINE` for --help.

    Each also has `add_arguments(parser)` and `run(args) -> exit code`, and imports nothing heavy before it runs. It may
    have `EXAMPLES` for its --help: commands, each with what it does.
    """
    found = [importlib.import_module(f"convsmith.verbs.{known.name}") for known in pkgutil.iter_modules(_PACKAGE)]
    ordered = sorted((module for module in found if hasattr(module, "LINE")), key=lambda module: int(module.PLACE))
    return {module.__name__.rpartition(".")[2].replace("_", "-"): module for module in ordered}


def verb_parser(verb: str) -> Parser:
    module = verbs()[verb]
    examples = getattr(module, "EXAMPLES", {})
    parser = Parser(prog=f"convsmith {verb}", description=module.LINE, examples=examples)
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def top_parser(whole: bool = False) -> Parser:
    """The parser of `convsmith` itself; with `whole`, each verb has its arguments, which completion needs."""
    parser = Parser(
        prog="convsmith",
        description="Develop, finetune and understand convolutional image classifiers.",
        epilog="Start with:  convsmith train   (handwritten digits, nothing to download)",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--print-completion", choices=["bash", "zsh", "tcsh"], help="print a completion script")
    listed = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=Parser)
    for verb, module in verbs().items():
        sub = listed.add_parser(verb, help=module.LINE, add_help=False)
        if whole:
            module.add_arguments(sub)
            _complete(sub)
    return parser


def _complete(parser: Parser) -> None:
    """Tell shtab what a shell may offer for each value: the choices of a key, the names of presets, or else files."""
    import shtab

    from convsmith.config import choices, fields, presets

    known = {key: [str(choice) for choice in choices(info)] for key, info in fields()} | {"preset": list(presets())}
    for action in parser._actions:
        action.choices = action.choices or known.get(action.dest) or None
        if action.choices is None and action.nargs != 0:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        args = top_parser().parse_all(argv)
        if args.version:
            from convsmith.runtime import installed

            say(f"convsmith {installed('convsmith')}")
        elif args.print_completion:
            import shtab

            say_lines(shtab.complete(top_parser(whole=True), shell=args.print_completion))
        else:
            top_parser().print_help()
        return 0
    verb = argv[0]
    if verb not in verbs():
        raise UserError(f"unknown verb '{verb}'.{nearest(verb, verbs())} Verbs: {', '.join(verbs())}")
    if place().size > 1 and verb not in TOGETHER:
        raise UserError(
            f"{verb} runs in one process: start it without torchrun ({' and '.join(TOGETHER)} take several)"
        )
    args = verb_parser(verb).parse_all(argv[1:])
    code: int = args.run(args)
    return code


@contextlib.contextmanager
def _first_alone(here: Place) -> Iterator[None]:
    """A context in which only the first of several processes that train together prints results."""
    if not here.rank:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP raise an exception; handlers can be set only in the main thread."""
    from convsmith.runtime import ending_signals, leave_closed_terminal

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        leave_closed_terminal()
        if sys.platform != "win32":  # a terminal that closes sends it twice, and must not interrupt the clean-up
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise Terminated(number)

    before = {one: signal.signal(one, terminate) for one in ending_signals() if one != signal.SIGINT}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code (0 done, 1 failed, 2 wrong usage or input, 129, 130, 143)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that it cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if argv is None else argv
    here = Place()
    try:
        here = place()
        with _terminable(), _first_alone(here):
            code = dispatch(given)
        sys.stdout.flush()
        return code
    except EndedElsewhere:
        return 1
    except UserError as error:
        if here.speaks:
            say(f"{here.label}error: {error}", error=True)
        return 2
    except RunFailed as error:
        say(f"{here.label}failed: {error}", error=True)
        return 1
    except Stopped as stopped:
        if not here.rank:
            say()
            say(str(stopped))
        return 128 + stopped.signal
    except KeyboardInterrupt:
        say("interrupted", error=True)
        return 130
    except Terminated as terminated:
        say("terminated", error=True)
        return 128 + terminated.signal
    except BrokenPipeError:  # the reader of the pipe is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from convsmith import crash
        from convsmith.files import disk_trouble
        from convsmith.memory import FIX, ran_out

        if isinstance(error, OSError) and (trouble := disk_trouble(error)):  # which no caller has handled
            where = f"'{error.filename}': " if error.filename else ""
            say(f"error: {where}{trouble}", error=True)
            return 2
        if ran_out(error):
            say(f"{here.label}failed: memory ran out: {FIX}", error=True)
            return 1
        if os.environ.get(crash.VARIABLE) == "1":
            raise
        say(here.label + crash.line(error, given), error=True)
        return 1


def run() -> NoReturn:
    """`main` as a process that ends at once: unloading torch would take the interpreter most of a second."""
    code = main()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # the reader of the pipe is gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
