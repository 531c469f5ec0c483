# SPDX-License-Identifier: MIT
"""Ways to damage a file, sampled so that every region is hit: heads, tails, line ends, and a spread between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def positions(size: int, samples: int) -> list[int]:
    """Returns up to ``samples`` byte positions: both ends and an even spread."""
    if size <= samples:
        return list(range(size))
    spread = {round(index * (size - 1) / (samples - 1)) for index in range(samples - 4)}
    return sorted(spread | {0, 1, size - 2, size - 1})


def flips(content: bytes, samples: int) -> Iterator[tuple[str, bytes]]:
    """Yields (what was done, content with one byte changed)."""
    for index, position in enumerate(positions(len(content), samples)):
        mask = (0x01, 0x80, 0x20, 0xFF)[index % 4]
        yield (
            f"flip {mask:#04x} at {position}",
            (content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :]),
        )


def truncations(content: bytes, samples: int) -> Iterator[tuple[str, bytes]]:
    """Yields (what was done, content cut short); an empty file is one of them."""
    for size in positions(len(content), samples):
        yield f"cut to {size}", content[:size]


def extensions(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields (what was done, content with something behind it)."""
    for tail in (b"\0", b"\n", b"x" * 512):
        yield f"{len(tail)} bytes more", content + tail


def overwrite(path: Path, content: bytes) -> None:
    """Replaces a file's bytes where it lies, as a broken disk would."""
    path.chmod(0o600)
    path.write_bytes(content)
