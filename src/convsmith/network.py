"""Whether a server answers, within a short time limit. Downloads nothing."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

from convsmith.errors import first_line

REACHED_WITHIN = 2.0  # seconds for the first answer of a server, below which most answer in a tenth


def unreachable(address: str) -> str | None:
    """Why the server of an address cannot be reached, or None if it answers, whatever it says.

    Called before a library connects, since their clients try again several times, with a warning each.
    """
    answer: list[str | None] = []
    # Looking up a name has no time limit of its own.
    asking = threading.Thread(target=lambda: answer.append(_asked(address)), daemon=True)
    asking.start()
    asking.join(1.5 * REACHED_WITHIN)
    return answer[0] if answer else f"no answer within {1.5 * REACHED_WITHIN:g} s"


def _asked(address: str) -> str | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=REACHED_WITHIN):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return str(reason.strerror if isinstance(reason, OSError) and reason.strerror else first_line(reason))
