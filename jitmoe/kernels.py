# SPDX-License-Identifier: MIT
"""entry -> kernel: loads artifacts for a device, with machine code that was made for it before where there is some."""

from __future__ import annotations

import logging
import time

import jitmoe
from jitmoe.builder import Builder
from jitmoe.cache import CacheKey, Entry
from jitmoe.compilers.base import ArtifactKind
from jitmoe.compilers.ocloc import Ocloc
from jitmoe.device import Device, DeviceKind
from jitmoe.errors import CompileError, LoadError
from jitmoe.runtime import loader
from jitmoe.runtime.loader import Kernel
from jitmoe.runtime.stream import Stream
from jitmoe.source import header_digest
from jitmoe.spec import KernelSpec

logger = logging.getLogger("jitmoe")

OCLOC_MAKER = "ocloc"


class KernelStore:
    """The kernels of this process, by entry and context. Loaded code is never unloaded."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._kernels: dict[tuple[str, int], Kernel] = {}

    def load(self, spec: KernelSpec, entry: Entry, stream: Stream) -> Kernel:
        place = (entry.key.digest, stream.context_id)
        kernel = self._kernels.get(place)
        if kernel is None:
            if ArtifactKind.SHARED_LIBRARY.value in entry.files:
                kernel = self._load_shared_library(spec, entry, stream)
            elif ArtifactKind.SPIRV.value in entry.files:
                kernel = self._load_spirv(spec, entry, stream)
            else:
                raise LoadError(kernel=spec.entry_name, reason=f"entry {entry.origin} holds {sorted(entry.files)}")
            self._kernels[place] = kernel
        return kernel

    def _load_shared_library(self, spec: KernelSpec, entry: Entry, stream: Stream) -> Kernel:
        """Loads what icpx made; where that cannot be loaded, another compiler's image takes its place."""
        image = entry.files[ArtifactKind.SHARED_LIBRARY.value]
        try:
            return loader.load_shared_library(spec.entry_name, image, entry.key.digest, stream)
        except LoadError as error:
            self._builder.give_up_on_libraries(error)
            return self.load(spec, self._builder.build_one(spec, stream.device), stream)

    def _load_spirv(self, spec: KernelSpec, entry: Entry, stream: Stream) -> Kernel:
        """Loads with the machine code that the driver made last time, or keeps what it makes now."""
        device = stream.device
        key = native_key(entry.key, device, maker=f"driver {device.driver_version} {device.fingerprint}")
        kept = self._builder.cache.get(key)
        if kept is None and device.kind is DeviceKind.GPU:
            kept = next((made for made in self._builder.cache.siblings(key) if _made_by_ocloc(made)), None)
        machine_code = kept.files[ArtifactKind.NATIVE.value] if kept is not None else b""

        def load(machine_code: bytes) -> tuple[Kernel, bytes]:
            return loader.load_spirv(
                spec.entry_name,
                entry.files[ArtifactKind.SPIRV.value],
                spec.num_parameters,
                stream,
                large_grf=spec.large_grf,
                is_vectorized=spec.is_for_cpus,
                machine_code=machine_code,
            )

        try:
            kernel, made = load(machine_code)
        except LoadError as error:
            if not machine_code:
                raise
            logger.warning("jitmoe: machine code of %s is not taken (%s); building it again", spec.entry_name, error)
            return load(b"")[0]
        if made and not machine_code:
            self._keep_machine_code(key, spec, device, made)
        return kernel

    def add_machine_code(self, ocloc: Ocloc, spec: KernelSpec, entry: Entry, device: Device) -> None:
        """Stores what ocloc makes of an image for a GPU that need not be here."""
        key = native_key(entry.key, device, maker=f"{OCLOC_MAKER} {ocloc.version}")
        if self._builder.cache.get(key) is not None:
            return
        try:
            made = ocloc.compile(
                entry.files[ArtifactKind.SPIRV.value],
                kernel=spec.entry_name,
                arch=device.arch,
                large_grf=spec.large_grf,
                timeout_s=self._builder.settings.compile_timeout_s,
            )
        except CompileError as error:
            logger.warning("jitmoe: no machine code beforehand, the driver will make it: %s", error)
            return
        self._keep_machine_code(key, spec, device, made.image)

    def _keep_machine_code(self, key: CacheKey, spec: KernelSpec, device: Device, image: bytes) -> None:
        info = {
            "spec": str(spec),
            "device": str(device),
            "driver": device.driver_version,
            "headers": header_digest(),
            "jitmoe": jitmoe.__version__,
            "created": time.time(),
        }
        self._builder.cache.put(Entry(key=key, files={ArtifactKind.NATIVE.value: image}, info=info))


def native_key(key: CacheKey, device: Device, *, maker: str) -> CacheKey:
    """Returns the key of the machine code that ``maker`` (a driver on its device, or ocloc) makes of an image."""
    return CacheKey(f"{key.name}.native", (("image", key.digest), ("arch", device.arch)), (("maker", maker),))


def _made_by_ocloc(entry: Entry) -> bool:
    return dict(entry.key.build)["maker"].startswith(OCLOC_MAKER)
