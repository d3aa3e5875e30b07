"""What is to be said of images although they can be decoded: pages and colour profiles that are not used."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from typing import Literal

Remark = Literal["pages", "profile"]

_SENTENCES: dict[Remark, str] = {
    "pages": "of {count:,} TIFF files with several pages, the first page alone is used",
    "profile": "{count:,} images have a colour profile other than sRGB, such as Display P3 or Adobe RGB, which is not "
    "applied: convert them where their exact colours matter",
}
# The tristimulus values of sRGB's primaries as profiles hold them, adapted to D50 (IEC 61966-2-1, ICC.1:2022 8.2)
_SRGB = {b"rXYZ": (0.4361, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971), b"bXYZ": (0.1431, 0.0606, 0.7141)}
_NEAR = 0.01  # profiles round, and some adapt in another way
_MOST_TAGS = 100


def sentences(remarks: Iterable[Remark]) -> tuple[str, ...]:
    """A sentence for each kind of remark, with the number of its images."""
    counts = Counter(remarks)
    return tuple(text.format(count=counts[kind]) for kind, text in _SENTENCES.items() if counts[kind])


def is_other_profile(profile: object) -> bool:
    """Whether an ICC profile is for RGB with other primaries than sRGB's; what cannot be read is no profile.

    Only the header and three tags are looked at (ICC.1:2022, 7.2, 7.3 and 10.31).
    """
    if not isinstance(profile, bytes) or profile[16:20] != b"RGB ":
        return False
    try:
        (number,) = struct.unpack_from(">I", profile, 128)
        for at in range(132, 132 + 12 * min(number, _MOST_TAGS), 12):
            tag, start, _ = struct.unpack_from(">4sII", profile, at)
            if tag in _SRGB:
                found = [value / 2**16 for value in struct.unpack_from(">3i", profile, start + 8)]
                if any(abs(one - other) > _NEAR for one, other in zip(found, _SRGB[tag], strict=True)):
                    return True
    except struct.error:
        return False
    return False
