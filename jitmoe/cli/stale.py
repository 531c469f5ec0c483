# SPDX-License-Identifier: MIT
"""Which parts of a cache nothing on this machine will use again: pure decisions over facts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jitmoe.cache.files import StoredEntry
from jitmoe.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What is here now. Empty parts are unknown, and then nothing is stale because of them."""

    headers: str  # digest of the packaged kernel sources
    compilers: tuple[str, ...]  # identities of the compilers found
    runtime: str  # soname of libsycl
    devices: tuple[Device, ...]
    packages: tuple[str, ...] = ()  # identities of the packages found whose headers kernels include


def image_of(stored: StoredEntry) -> str:
    """Returns the digest of the entry that a driver's machine code was made from; empty for all other entries."""
    return dict(stored.key.request).get("image", "")


def why_entry_is_stale(stored: StoredEntry, present: Present) -> str:
    """Returns why an entry will never be looked up again here, or an empty string.

    Entries for devices that are not here (built for other machines) are kept: only what is here can be compared.
    """
    request, build = dict(stored.key.request), dict(stored.key.build)
    if image_of(stored):
        return _why_other_driver(str(stored.info.get("device", "")), build.get("driver"), build.get("device"), present)
    if present.headers and request.get("headers") not in (None, present.headers):
        return f"the kernel sources have changed since (jitmoe {stored.info.get('jitmoe', '?')} then)"
    # Without any compiler, images by whatever compiler are used, so none of them is stale.
    if present.compilers and build.get("compiler") not in (None, *present.compilers):
        return f"made by {_short(str(build['compiler']))}, which is not here"
    if present.packages and build.get("package") not in (None, *present.packages):
        return f"made with the headers of another {str(build['package']).split()[0]}"
    if present.runtime and build.get("runtime") not in (None, "", present.runtime):
        return f"made for {build['runtime']}, dpctl here has {present.runtime}"
    drivers = {device.driver_version for device in present.devices if device.arch == build.get("device")}
    if build.get("driver") and drivers and build["driver"] not in drivers:
        return f"made for driver {build['driver']}, here is {', '.join(sorted(drivers))}"
    return ""


def why_verdict_is_stale(name: str, verdict: Mapping[str, Any], entries: Collection[str], present: Present) -> str:
    """Returns why a record in ``trust/`` says nothing any more, or an empty string.

    Args:
        name: "<entry digest>-<device fingerprint>" or "<entry digest>-compile" (a compiler that failed).
        verdict: the record.
        entries: digests of all entries that stay.
        present: what is here.
    """
    digest, _, place = name.partition("-")
    if place == "compile":
        return "a failed compilation is tried again"
    if digest not in entries:
        return "its kernel is gone"
    return _why_other_driver(str(verdict.get("device", "")), verdict.get("driver"), place, present)


def _why_other_driver(words: str, driver: str | None, fingerprint: str | None, present: Present) -> str:
    """Returns why something made on a device (``words`` = str(device)) does not hold for the same device today."""
    if fingerprint in {device.fingerprint for device in present.devices}:
        return ""
    for device in present.devices:
        if words.startswith(f"{device.name} (") and driver not in (None, device.driver_version):
            return f"from driver {driver}, here is {device.driver_version}"
    return ""


def _short(identity: str) -> str:
    """Drops the content digest of a compiler's identity."""
    return identity.partition(" sha256")[0]
