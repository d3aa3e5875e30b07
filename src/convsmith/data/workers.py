"""Decodes images in processes: ``python -m convsmith.data.workers`` is one of them.

Threads would hold up the steps of a training: each operation of torch gives up the interpreter's lock and waits for it
afterwards, for up to 5 ms where a thread decodes. And of small images two threads decode no more than one, since most
of the work is Python's.

A process gets a line of JSON with the rules, and whether to decode ordinary images alone; then, for each request, a
line with the sizes of images, and their bytes. In place of an image may stand the path of its file, with a size below
zero. It answers with a line that holds, for each image, null or the kind and text of its error, and the pixels of the
others.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from convsmith.data import limits
from convsmith.data.config import DecodeRules
from convsmith.data.decode import DecodeError, Pixels, decode_deep
from convsmith.errors import RunFailed, UserError
from convsmith.files import parse_json
from convsmith.processes import python_module
from convsmith.runtime import usable_cores

_OTHER = "user"  # the kind of an error that is no fault of the image
ORDINARY_BYTES = 2**24  # that decoding an ordinary image takes at most


class Workers:
    """As many processes as there are cores for this one, started when they are first needed. Thread-safe.

    With `ordinary`, images that take much memory, have more than 8 bits, or of which there is a remark, are left to the
    caller, who counts memory for all threads: they come back as a DecodeError, as those do that cannot be decoded.
    """

    def __init__(self, rules: DecodeRules, shape: tuple[int, int, int], ordinary: bool = False) -> None:
        self._rules, self._shape, self._ordinary = rules, shape, ordinary
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._started = False

    def decode(self, images: Sequence[bytes | Path]) -> list[Pixels | DecodeError]:
        """The pixels of encoded images, or of files, or why they cannot be decoded, in their order."""
        contents = [os.fsencode(image) if isinstance(image, Path) else image for image in images]
        signs = [-1 if isinstance(image, Path) else 1 for image in images]
        sizes = [sign * len(content) for sign, content in zip(signs, contents, strict=True)]
        process = self._idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            _write(process.stdin, sizes, b"".join(contents))
            errors = parse_json((process.stdout.readline() or b"null").decode())
            if errors is None:
                raise EOFError
            pixels = np.frombuffer(_read(process.stdout, errors.count(None) * int(np.prod(self._shape))), np.uint8)
        except (OSError, EOFError):
            raise RunFailed(
                "a process that decodes images has ended, perhaps for want of memory: end other programs, and resume"
            ) from None
        finally:
            self._idle.put(process)
        decoded = iter(pixels.reshape(-1, *self._shape))
        return [next(decoded) if error is None else _error(*error) for error in errors]

    def start(self) -> None:
        """Start the processes, if they are not running."""
        if self._started:
            return
        self._started = True
        processes = [
            subprocess.Popen(python_module(__name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        ]
        weakref.finalize(self, _end, processes)
        for process in processes:
            assert process.stdin is not None
            _write(process.stdin, [self._rules.model_dump(mode="json"), self._ordinary])
            self._idle.put(process)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()  # it writes nothing but its answers
        process.communicate()


def _error(kind: str, message: str) -> DecodeError:
    if kind == _OTHER:
        raise UserError(message)
    return DecodeError(kind, message)  # type: ignore[arg-type]


def _write(stream: IO[bytes], line: object, content: bytes = b"") -> None:
    stream.write(json.dumps(line).encode() + b"\n" + content)
    stream.flush()


def _read(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def main() -> None:
    """Answer requests until there are no more."""
    # Ctrl-C reaches all processes of a terminal, and a scheduler's SIGTERM all of a job; the first one, which saves its
    # training with what is decoded here, ends this.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the output of libraries must not get between the answers
    requests = sys.stdin.buffer
    values, ordinary = parse_json(requests.readline().decode())
    rules = DecodeRules.model_validate(values)
    if ordinary:
        limits.MEMORY = ORDINARY_BYTES
    while line := requests.readline():
        errors: list[tuple[str, str] | None] = []
        pixels = []
        contents = [(_read(requests, abs(size)), size < 0) for size in parse_json(line.decode())]
        for content, is_path in contents:
            try:
                decoded = decode_deep(Path(os.fsdecode(content)) if is_path else content, rules)
                if ordinary and (decoded.remarks or not np.isnan(decoded.depth.low)):
                    raise DecodeError("unsupported", "it is no ordinary image")
                pixels.append(decoded.pixels.tobytes())
                errors.append(None)
            except DecodeError as error:
                errors.append((error.kind, error.message))
            except UserError as error:
                errors.append((_OTHER, str(error)))
        _write(answers, errors, b"".join(pixels))


if __name__ == "__main__":
    with suppress(EOFError, BrokenPipeError):  # whoever asked was killed
        main()
