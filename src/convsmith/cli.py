"""The command line. Imports nothing heavy until a verb runs."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

from convsmith.errors import RunFailed, Stopped, UserError, nearest

#: verb -> the module of `convsmith.verbs` that has its arguments and its work, and a line for --help
VERBS: dict[str, tuple[str, str]] = {
    "train": ("train", "train a classifier on a data set, into a new run directory"),
    "resume": ("resume", "go on with a run that was stopped or killed, to the very same weights"),
    "evaluate": ("evaluate", "accuracy, precision, recall, F1 and confusion matrix on the val or test split"),
    "report": ("report", "one page about a run: diagnosis, curves, confusions, mistakes, calibration, layers, data"),
    "compare": ("compare", "runs side by side: configs, curves, and McNemar's test on paired predictions"),
    "predict": ("predict", "classify files, folders or patterns of files"),
    "explain": ("explain", "heat maps of what the net looked at, and pictures of how it works"),
    "summary": ("summary", "the network layer by layer: sizes, equations, parameters, multiply-adds"),
    "crossval": ("crossval", "N-fold cross-validation: mean, deviation and interval of every metric"),
    "ablate": ("ablate", "which change helps, by how much, and how sure: arms compared on the same folds"),
    "tune": ("tune", "search the best values of any keys: Optuna's trials, resumable, without the test split"),
    "lr-find": ("lr_find", "which learning rates learn: the range test, with its curve and a suggestion"),
    "data": ("data", "check a data set: broken files, duplicates, class counts"),
    "export": ("export", "the model as an ONNX or torch.export file, checked against PyTorch on real images"),
    "serve": ("serve", "a page on this machine to try the model on images, and a JSON endpoint"),
    "presets": ("presets", "list the presets, or show one"),
    "doctor": ("doctor", "versions, devices, threads, cache and W&B of this machine"),
}


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors; an unknown flag gets the nearest known one."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see: {self.prog} --help)")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        # Intermixed: `explain RUN --figure pooling cat.png` has a path on either side of a flag.
        mixed = self._subparsers is None  # argparse cannot have both
        args, extra = self.parse_known_intermixed_args(argv) if mixed else self.parse_known_args(argv)
        if extra:
            flag = extra[0].partition("=")[0]
            if not flag.startswith("-"):
                self.error(f"unexpected argument '{flag}'")
            self.error(f"unknown flag '{flag}'.{nearest(flag, self._option_string_actions)}")
        return args


def verb_parser(verb: str) -> Parser:
    module = importlib.import_module(f"convsmith.verbs.{VERBS[verb][0]}")
    parser = Parser(prog=f"convsmith {verb}", description=VERBS[verb][1], allow_abbrev=False)
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def top_parser(whole: bool = False) -> Parser:
    """The parser of `convsmith` itself; with `whole` each verb has its arguments, as completion needs."""
    parser = Parser(
        prog="convsmith",
        description="Develop, finetune and understand convolutional image classifiers.",
        epilog="Start with:  convsmith train   (handwritten digits, nothing to download)",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--print-completion", choices=["bash", "zsh", "tcsh"], help="print a completion script")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=Parser)
    for verb, (module, line) in VERBS.items():
        sub = verbs.add_parser(verb, help=line, add_help=False)
        if whole:
            importlib.import_module(f"convsmith.verbs.{module}").add_arguments(sub)
            _complete(sub)
    return parser


def _complete(parser: Parser) -> None:
    """Tell shtab what a shell may offer for each value: the choices of a key, names of presets, else files."""
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
            from importlib.metadata import version

            print(f"convsmith {version('convsmith')}")
        elif args.print_completion:
            import shtab

            print(shtab.complete(top_parser(whole=True), shell=args.print_completion))
        else:
            top_parser().print_help()
        return 0
    verb = argv[0]
    if verb not in VERBS:
        raise UserError(f"unknown verb '{verb}'.{nearest(verb, VERBS)} Verbs: {', '.join(VERBS)}")
    args = verb_parser(verb).parse_all(argv[1:])
    code: int = args.run(args)
    return code


class Terminated(BaseException):
    """SIGTERM came outside of a training, which would save first: what is half made is cleared away on the way out."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Within it SIGTERM is an exception; handlers can be set in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code (0 done, 1 failed, 2 wrong usage or input, 130, 143)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name or a sign that it cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminable():
            code = dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"\n{stopped}")
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Terminated:
        print("terminated", file=sys.stderr)
        return 143
    except BrokenPipeError:  # the reader of a pipe went away: nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that no caller had in mind
        from convsmith.files import disk_trouble

        if (trouble := disk_trouble(error)) is None:
            raise
        where = f"'{error.filename}': " if error.filename else ""
        print(f"error: {where}{trouble}", file=sys.stderr)
        return 2


def run() -> NoReturn:
    """`main` as a process, which ends at once: taking torch apart would cost the interpreter most of a second."""
    code = main()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # the reader of a pipe went away
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
