# SPDX-License-Identifier: MIT
"""The headers of the sycl-tla package (CuTe for Intel GPUs), and the overlay that kernels need on top of them.

None of its code is here: the overlay is made from the installed package, in memory, whenever a kernel is compiled.

* Its block 2D copies are ``asm`` without ``volatile``. The wheel's compiler merges such statements if they share a
  descriptor, although the descriptor has moved in between: loads disappear and kernels compute with wrong operands.
  The overlay holds the package's header with these statements made volatile. If the header does not look as expected,
  there is no overlay and no kernel: a kernel with lost loads would be worse than none.
* It includes all of SYCL, host helpers and the traits of other hardware: half of the compile time of a CuTe kernel.
  ``sycl_tla_overlay`` has small headers of ours that stand in for some; traits of hardware without Xe are left empty.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

from jitmoe.compilers.base import HeaderPackage

PACKAGE = "sycl-tla"
EXTRA = "pip install 'jitmoe[cutlass]'"
ANCHOR = "cute/tensor.hpp"  # a file in the header folder
COPY_HEADER = "cute/arch/copy_xe_2d.hpp"
FOLDERS = ("cute", "cutlass")  # below the header folder: what kernels can include
DEFINES = ("-DCUTLASS_ENABLE_SYCL", "-DSYCL_INTEL_TARGET")
STAND_INS = Path(__file__).with_name("sycl_tla_overlay")

NUM_BLOCK_MESSAGES = 5  # asm statements in COPY_HEADER: load, VNNI load, transposed load, prefetch, store
_ASM = re.compile(r"\basm\b(?P<volatile>\s+volatile\b)?(?P<rest>\s*\(\s*\"(?P<text>[^\"]*)\")")
_BLOCK_MESSAGE = re.compile(r"^lsc_(?:load|store)_block2d\.ugm\b")

# Not Xe, or Xe's older interface: nothing that the kernels use.
_UNUSED_TRAITS = re.compile(r"^(?:mma|copy)_traits_(?:sm\d+.*|xe_legacy|xe)\.hpp$")
_NEEDED_TRAITS = ("mma_traits_xe.hpp",)
# Templates of CuTe's copies name these operations of the traits left out.
_NAMES_OF_UNUSED = """\
#pragma once
namespace cute {
struct SM90_BULK_COPY_AUTO;
struct SM90_BULK_COPY_G2S;
struct SM90_BULK_COPY_S2G;
}
"""


class OverlayError(Exception):
    """The package's headers are not what the overlay is made for."""


def volatile_copies(header: str) -> str:
    """Returns the text of ``COPY_HEADER`` with every block 2D message volatile.

    Raises:
        OverlayError: the text does not hold exactly the expected ``asm`` statements.
    """
    statements = list(_ASM.finditer(header))
    mentions = len(re.findall(r"\basm\b", header))
    messages = sum(bool(_BLOCK_MESSAGE.match(statement["text"])) for statement in statements)
    if not len(statements) == mentions == messages == NUM_BLOCK_MESSAGES:
        raise OverlayError(
            f"{COPY_HEADER} has {mentions} asm statements, {messages} of them block 2D messages; expected "
            f"{NUM_BLOCK_MESSAGES} and {NUM_BLOCK_MESSAGES}. Kernels could lose loads, so none is compiled with it"
        )
    return _ASM.sub(lambda statement: f"asm volatile{statement['rest']}", header)


def make_overlay(folder: Path) -> tuple[tuple[str, str], ...]:
    """Returns the overlay for the header folder of an installed package; raises ``OverlayError``."""
    texts = {path.relative_to(STAND_INS).as_posix(): path.read_text() for path in STAND_INS.rglob("*.h*")}
    missing = [name for name in (*texts, COPY_HEADER) if name.startswith(FOLDERS) and not (folder / name).is_file()]
    if missing:
        raise OverlayError(f"its headers lack {', '.join(missing)}")
    unused = [
        path.name
        for path in (folder / "cute" / "atom").glob("*_traits_*.hpp")
        if _UNUSED_TRAITS.match(path.name) and path.name not in _NEEDED_TRAITS
    ]
    texts |= dict.fromkeys((f"cute/atom/{name}" for name in unused), _NAMES_OF_UNUSED)
    texts[COPY_HEADER] = volatile_copies((folder / COPY_HEADER).read_text())
    return tuple(sorted(texts.items()))


def digest_of(folder: Path, overlay: tuple[tuple[str, str], ...]) -> str:
    """Returns a SHA-256 over all headers below ``folder`` that can be included, and the overlay."""
    digest = hashlib.sha256(usedforsecurity=False)

    def add(name: str, content: bytes) -> None:
        for part in (name.encode(), content):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)

    for path in sorted(path for name in FOLDERS for path in (folder / name).rglob("*") if path.is_file()):
        add(path.relative_to(folder).as_posix(), path.read_bytes())
    for name, text in overlay:
        add(name, text.encode())
    return digest.hexdigest()


@functools.cache
def find_sycl_tla() -> tuple[HeaderPackage | None, str]:
    """Looks for the package; returns (headers or None, what was found in words)."""
    from importlib import metadata  # here: it alone would double the time that importing jitmoe takes

    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None, f"{PACKAGE}: not installed ({EXTRA})"
    version = distribution.version
    record = distribution.read_text("RECORD") or ""
    anchor = next((line.split(",")[0] for line in record.splitlines() if f"/include/{ANCHOR}," in line), None)
    if anchor is None:
        return None, f"{PACKAGE} {version}: its RECORD names no include/{ANCHOR}"
    folder = Path(str(distribution.locate_file(anchor))).resolve().parents[ANCHOR.count("/")]
    if not (folder / ANCHOR).is_file():
        return None, f"{PACKAGE} {version}: {folder / ANCHOR} is missing (reinstall the package)"
    try:
        overlay = make_overlay(folder)
    except OverlayError as error:
        return None, f"{PACKAGE} {version}: {error}"
    package = HeaderPackage(
        name=PACKAGE,
        version=version,
        digest=digest_of(folder, overlay),
        folder=folder,
        overlay=overlay,
        defines=DEFINES,
    )
    return package, f"{PACKAGE} {version}"


def find_headers(name: str) -> tuple[HeaderPackage | None, str]:
    """Returns the package that ``KernelSpec.HEADERS`` names, and what was found in words."""
    if name != PACKAGE:
        raise ValueError(f"no kernel of ours includes headers of {name!r}")
    return find_sycl_tla()
