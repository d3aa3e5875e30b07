"""convsmith serve RUN [--host HOST] [--port PORT]."""

from __future__ import annotations

import argparse

from convsmith.errors import missing_extra
from convsmith.verbs.flags import add_device_argument, add_reading_arguments, read_moved

PLACE, LINE = 150, "serve a page to try the model on images, and a JSON endpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="a run directory, or the folder of a model")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all addresses [127.0.0.1: this machine]"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any free one [8000]")
    add_reading_arguments(parser, "the run's data, where they have moved, for the nearest training images")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    from convsmith.rundir import open_trained

    directory = open_trained(args.directory, "model/model.json", "splits.json")
    try:
        from convsmith.serve.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "python_multipart"):
            raise
        raise missing_extra(str(error.name), "serve") from None
    from convsmith.display import Display

    source = read_moved(args, directory)
    serve(directory, args.host, args.port, args.device, source=source, listener=Display())
    return 0
