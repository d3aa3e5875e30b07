"""A process that finds and decodes images in requests: ``decoder_process RULES SECONDS``. `decoder` starts it.

Whatever strangers send is parsed here alone, where it can be ended. It reads requests from stdin: the lengths of the
content type and of the body (HEAD), and both. For each it writes a line of JSON to stdout: ``{"shape": [H, W, C]}``,
which the uint8 pixels follow, or ``{"refused": [HTTP status, message, seconds until another try or null]}``. It ends
with its stdin, and where an image takes more than SECONDS of the processor's time: that a machine is busy makes no
image a slow one.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys

from PIL import Image

from convsmith.data.config import DecodeRules
from convsmith.data.decode import DecodeError, Pixels, decode, read_header
from convsmith.serve.form import Refused, image_of

HEAD = struct.Struct("<QQ")
READY = b"ready\n"  # the first line of stdout
MAX_PIXELS = 25_000_000  # decoding takes up to 24 bytes per pixel (JPEG 2000 with transparency)
SECONDS = 5.0  # of the processor's time that one image may take


def pixels_of(body: bytes, content_type: str, rules: DecodeRules) -> Pixels:
    """The image in a body, decoded: uint8 [H, W, C]; Refused where there is none, or it is broken or too large."""
    try:
        image = image_of(body, content_type)
        header = read_header(image)
        if header.width * header.height > MAX_PIXELS:
            size = f"{header.width} x {header.height}"
            raise Refused(413, f"the image is too large: {size} pixels, at most {MAX_PIXELS // 10**6} million")
        return decode(image, rules)
    except DecodeError as error:
        if error.kind == "unreadable":
            raise _no_memory() from None
        status = 413 if error.kind == "bomb" else 422
        raise Refused(status, f"the image cannot be read ({error}): send another one") from None
    except MemoryError:  # in the form around the image
        raise _no_memory() from None


def _no_memory() -> Refused:
    return Refused.for_now("the server has too little memory at present")


def main() -> None:
    # The output of libraries must not get between the answers.
    answers, requests = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)
    rules = DecodeRules.model_validate_json(sys.argv[1])
    Image.init()  # loading Pillow's formats is no image's time
    answers.write(READY)
    answers.flush()
    while head := requests.read(HEAD.size):
        content_type, body = (requests.read(length) for length in HEAD.unpack(head))
        _end_after(float(sys.argv[2]))
        try:
            pixels = pixels_of(body, content_type.decode("latin-1"), rules)
        except Refused as refused:
            answer, content = {"refused": [refused.status, str(refused), refused.retry_after]}, b""
        else:
            answer, content = {"shape": list(pixels.shape)}, pixels.tobytes()
        _end_after(0)
        answers.write(json.dumps(answer).encode() + b"\n" + content)
        answers.flush()


def _end_after(seconds: float) -> None:
    """Have the system end this process after `seconds` of work, whatever it is doing then; 0 cancels that."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
