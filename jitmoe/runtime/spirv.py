# SPDX-License-Identifier: MIT
"""One change to SPIR-V modules, made when they are loaded: telling the CPU device that a kernel is vectorized already.

The CPU device's compiler widens kernels over work-items. For kernels that use explicit vectors and work-groups of one
work-item that is useless and takes long (measured on 2026.2: 10 s instead of 0.4 s for one GEMM kernel). OpenCL's
vec_type_hint, execution mode VecTypeHint in SPIR-V (specification 1.6, section 3.2.6), switches it off, but SYCL
has no attribute for it any more.
"""

from __future__ import annotations

import struct

MAGIC = 0x07230203
_HEADER_WORDS = 5
_OP_ENTRY_POINT, _OP_EXECUTION_MODE = 15, 16
_MODE_VEC_TYPE_HINT = 30
_FLOAT16 = 16 << 16 | 5  # 16 components of 32-bit float


def with_vector_hint(image: bytes) -> bytes:
    """Returns ``image`` with a VecTypeHint for its entry point; raises ``ValueError`` if it is no sound module."""
    words = struct.unpack(f"<{len(image) // 4}I", image[: len(image) // 4 * 4])
    if not words or words[0] != MAGIC or len(image) % 4:
        raise ValueError("no SPIR-V module")
    position = _HEADER_WORDS
    entry_points = []
    while position < len(words):
        length, opcode = words[position] >> 16, words[position] & 0xFFFF
        if length == 0 or position + length > len(words):
            raise ValueError(f"broken instruction at word {position}")
        if opcode == _OP_ENTRY_POINT:
            entry_points.append(words[position + 2])
        elif entry_points:  # execution modes follow the entry points
            break
        position += length
    hints = [
        word for entry in entry_points for word in (4 << 16 | _OP_EXECUTION_MODE, entry, _MODE_VEC_TYPE_HINT, _FLOAT16)
    ]
    at = position * 4
    return image[:at] + struct.pack(f"<{len(hints)}I", *hints) + image[at:]
