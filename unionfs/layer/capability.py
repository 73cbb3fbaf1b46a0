"""The value of ``security.capability``: for whose root a file has its capabilities.

It is ``struct vfs_cap_data`` (linux/capability.h), little-endian: revision and flags, then
two times the permitted and inheritable bits. Revision 2 is for root of the first user
namespace; revision 3 ends with the user id of the root that it is for.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_V2: Final = struct.Struct("<I16s")
_V3: Final = struct.Struct("<I16sI")
_REVISION_MASK: Final = 0xFF000000
_REVISION_2: Final = 0x02000000
_REVISION_3: Final = 0x03000000


def with_root(value: bytes, translate: Callable[[int], int]) -> bytes:
    """Return *value* for the root that *translate* makes of the one it is for.

    In the form of revision 2 where that is 0, as most programs know no other. A value of
    another form stays what it is: the kernel takes no capabilities from it.
    """
    if len(value) == _V2.size:
        (flags, bits), root = _V2.unpack(value), 0
        revision = _REVISION_2
    elif len(value) == _V3.size:
        flags, bits, root = _V3.unpack(value)
        revision = _REVISION_3
    else:
        return value
    if flags & _REVISION_MASK != revision:
        return value
    translated = translate(root)
    flags &= ~_REVISION_MASK
    if translated == 0:
        return _V2.pack(flags | _REVISION_2, bits)
    return _V3.pack(flags | _REVISION_3, bits, translated)
