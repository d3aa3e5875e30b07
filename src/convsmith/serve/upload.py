"""What was sent, held in memory alone and under limits; what passes one is refused with a reason."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

MAX_BYTES = 16 * 2**20  # of an image: cameras stay below it
MAX_FORM = MAX_BYTES + 2**16  # of the form around it
MAX_DRAIN = (
    4 * MAX_BYTES
)  # read and thrown away, so that a refusal reaches clients that only listen when they have sent
MAX_NAME = 255  # bytes of a file name: no file system has longer ones
FIELD = "image"


class Refused(Exception):
    """A request that gets an error: HTTP `status` and a line that says why."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


async def receive(request: Request) -> bytes:
    """The body of a request; Refused (413) where it is larger than MAX_FORM."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            await drain(request, MAX_DRAIN - len(body))
            raise Refused(413, f"the upload is larger than {MAX_BYTES // 2**20} MB: send a smaller image")
    return bytes(body)


async def drain(request: Request, most: int = MAX_DRAIN) -> None:
    """Read what is left of a body and keep none of it; whoever sends more than `most` bytes is cut off."""
    async for chunk in request.stream():
        most -= len(chunk)
        if most < 0:
            return


def image_of(body: bytes, content_type: str) -> bytes:
    """The image in a body: the field `image` of a form (multipart/form-data), else the body as it is.

    Raises Refused where there is none, the form is malformed, or the file name or the image too long.
    """
    kind, options = parse_options_header(content_type)
    image = body
    if kind == b"multipart/form-data":
        form = _Form()
        try:
            parser = MultipartParser(options.get(b"boundary", b""), form.callbacks())  # type: ignore[arg-type]
            parser.write(body)
            parser.finalize()
        except FormParserError as error:
            if "header size" in str(error):
                raise Refused(400, f"the file name is too long: at most {MAX_NAME} bytes") from None
            raise Refused(400, f"the form cannot be read ({error}): send it whole, as multipart/form-data") from None
        image = bytes(form.image)
    if not image:
        raise Refused(400, f"no image was sent: POST it as the field '{FIELD}' of a form, or as the body itself")
    if len(image) > MAX_BYTES:
        raise Refused(413, f"the image is larger than {MAX_BYTES // 2**20} MB: send a smaller one")
    return image


class _Form:
    """Collects the first part called `image`; of other parts nothing is kept."""

    def __init__(self) -> None:
        self.image = bytearray()
        self._name, self._value, self._disposition = b"", b"", b""
        self._wanted = False

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
        }

    def _begin(self) -> None:
        self._name, self._value, self._disposition = b"", b"", b""
        self._wanted = False

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename", b"")
        if len(name) > MAX_NAME:
            raise Refused(400, f"the file name is too long: {len(name)} bytes, at most {MAX_NAME}")
        self._wanted = options.get(b"name") == FIELD.encode() and not self.image

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self.image += data[start:end]
