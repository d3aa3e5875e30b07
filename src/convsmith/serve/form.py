"""The image in the body of a request, under limits; what exceeds one is refused with a reason. Knows no server."""

from __future__ import annotations

from itertools import count

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

MAX_BYTES = 16 * 2**20  # of an image; photographs are smaller
MAX_FORM = MAX_BYTES + 2**16  # of the form around it
MAX_PARTS = 20  # of a form
MAX_NAME = 255  # bytes of a file name: no file system has longer ones
FIELD = "image"
RETRY_SECONDS = 2


class Refused(Exception):
    """A request that gets an error: HTTP `status` and a line that says why."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @classmethod
    def for_now(cls, why: str) -> Refused:
        """A refusal that is not the request's fault."""
        return cls(503, f"{why}: try again in {RETRY_SECONDS} seconds", RETRY_SECONDS)


def image_of(body: bytes, content_type: str) -> bytes:
    """The image in a body: the field `image` of a form (multipart/form-data), or else the whole body.

    Raises Refused where there is no image, the form is malformed, or the file name or the image is too long.
    """
    kind, options = parse_options_header(content_type)
    image = _image_of_form(body, options.get(b"boundary", b"")) if kind == b"multipart/form-data" else body
    if not image:
        raise Refused(400, f"no image was sent: POST it as the field '{FIELD}' of a form, or as the body itself")
    if len(image) > MAX_BYTES:
        raise Refused(413, f"the image is larger than {MAX_BYTES // 2**20} MB: send a smaller one")
    return image


def _image_of_form(body: bytes, boundary: bytes) -> bytes:
    """The first part called `image`, or b"" if there is none. The parts stay in memory, whatever their size."""
    images: list[bytes] = []
    ends: list[bool] = []
    numbers = count(1)

    def count_part() -> None:
        if next(numbers) > MAX_PARTS:
            raise Refused(400, f"the form has more than {MAX_PARTS} parts: send the field '{FIELD}' alone")

    def on_field(field: Field) -> None:
        count_part()
        if field.field_name == FIELD.encode():
            images.append(field.value or b"")

    def on_file(file: File) -> None:
        count_part()
        if len(name := file.file_name or b"") > MAX_NAME:
            raise Refused(400, f"the file name is too long: {len(name)} bytes, at most {MAX_NAME}")
        if file.field_name == FIELD.encode():
            file.file_object.seek(0)
            images.append(file.file_object.read())

    try:
        limits = {"MAX_MEMORY_FILE_SIZE": MAX_FORM}
        parser = FormParser(
            "multipart/form-data", on_field, on_file, lambda: ends.append(True), boundary, config=limits
        )
        parser.write(body)
        parser.finalize()
        if not ends:
            raise FormParserError("it breaks off")
    except FormParserError as error:
        if "header size" in str(error):
            raise Refused(400, f"the file name is too long: at most {MAX_NAME} bytes") from None
        raise Refused(400, f"the form cannot be read ({error}): send it whole, as multipart/form-data") from None
    return next(filter(None, images), b"")
