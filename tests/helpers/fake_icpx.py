# SPDX-License-Identifier: MIT
"""A stand-in for icpx: takes exactly the command line that jitmoe emits, and anything else is an error.

The device part of the source is compiled by the wheel's library, the rest by g++: a real shared library with jitmoe's
three exported functions, whose kernel comes from the embedded SPIR-V. FAKE_ICPX_MODE makes it fail in a chosen way.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VERSION = "Intel(R) oneAPI DPC++/C++ Compiler 2026.0.0 (2026.0.0.20260401)"
HOST_INCLUDE = "#include <jitmoe/host/shared_library.hpp>\n"

LIBRARY_SOURCE = """
#include <cstdint>
#include <cstdio>
#include <cstring>
extern "C" {
void* DPCTLQueue_GetContext(void*);
void* DPCTLQueue_GetDevice(void*);
void* DPCTLKernelBundle_CreateFromSpirv(void*, void*, const void*, size_t, const char*);
bool DPCTLKernelBundle_HasKernel(void*, const char*);
void* DPCTLKernelBundle_GetKernel(void*, const char*);
}
alignas(8) static const unsigned char image[] = {%(bytes)s};
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT std::int32_t jitmoe_abi_version() { return %(abi)d; }
EXPORT const char* jitmoe_build_key() { return "%(key)s"; }
EXPORT void* jitmoe_get_kernel(const char* name, void* queue, char* error, std::size_t size) {
  if (std::strcmp(name, "%(entry)s") != 0) {
    std::snprintf(error, size, "this library holds %(entry)s");
    return nullptr;
  }
  void* bundle = DPCTLKernelBundle_CreateFromSpirv(
      DPCTLQueue_GetContext(queue), DPCTLQueue_GetDevice(queue), image, sizeof(image), "");
  if (!bundle || !DPCTLKernelBundle_HasKernel(bundle, "__sycl_kernel_%(symbol)s")) {
    std::snprintf(error, size, "no kernel %(symbol)s");
    return nullptr;
  }
  return DPCTLKernelBundle_GetKernel(bundle, "__sycl_kernel_%(symbol)s");
}
"""


def refuse(text: str) -> None:
    print(f"icpx: error: {text}", file=sys.stderr)
    sys.exit(1)


def parse(arguments: list[str]) -> dict[str, str]:
    """Returns the parts that vary; exits unless every argument is there, in this order, and nothing else."""
    expected = [
        "-fsycl",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-O3",
        r"-std=c\+\+20",
        "-fno-math-errno",
        r"-fsycl-targets=(?P<target>spir64|intel_gpu_[a-z0-9_]+(,intel_gpu_[a-z0-9_]+)*)",
        r"-I(?P<include>/.+)",
        r'-DJITMOE_BUILD_KEY="(?P<key>[0-9a-f]{64})"',
        r'-DJITMOE_ENTRY_NAME="(?P<entry>jitmoe_\w+)"',
        r"-DJITMOE_KERNEL_NAME=(?P<kernel>jitmoe_\w+)",
        r"-D(?P<old>jitmoe_[a-z0-9_]+)=(?P<symbol>jitmoe_\w+)",
    ]
    if "-isystem" in arguments:
        expected += ["-isystem", r"(?P<overlay>/.+)", "-isystem", r"(?P<package>/.+)", r"(?P<define1>-D\w+)"]
        expected += [r"(?P<define2>-D\w+)"]
    if "-Xsycl-target-backend" in arguments:
        expected += ["-Xsycl-target-backend", "-options -ze-opt-large-register-file"]
    expected += ["-o", r"(?P<output>/.+/kernel\.so)", r"(?P<source>/.+\.cpp)"]
    if len(arguments) != len(expected):
        refuse(f"{len(arguments)} arguments instead of {len(expected)}: {arguments}")
    parts: dict[str, str] = {}
    for argument, pattern in zip(arguments, expected, strict=True):
        found = re.fullmatch(pattern, argument)
        if found is None:
            refuse(f"unexpected argument {argument!r}, wanted {pattern}")
            raise SystemExit(1)
        parts |= found.groupdict()
    if not parts["entry"] == parts["kernel"] == parts["old"] or parts["symbol"] != f"{parts['old']}_{parts['key']}":
        refuse(f"names do not fit: {parts}")
    return parts


def spirv(parts: dict[str, str], source: str) -> bytes:
    """Compiles the device part with the wheel's library."""
    from jitmoe.compilers.sycl_jit import WORKER, find_sycl_jit

    library, _ = find_sycl_jit()
    assert library is not None
    package = []
    if "package" in parts:
        package = ["-isystem", parts["overlay"], "-isystem", parts["package"], parts["define1"], parts["define2"]]
    job = {
        "library": str(library.library),
        "kernel": parts["symbol"],
        "path": Path(parts["source"]).name,
        "source": source,
        "options": [
            "-O3", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fno-math-errno",
            f"-I{parts['include']}", f"-D{parts['old']}={parts['symbol']}", *package,
        ],
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(WORKER)], input=json.dumps(job).encode(), capture_output=True, check=False
    )
    head, _, image = done.stdout.partition(b"\n")
    answer = json.loads(head) if head else {"error": done.returncode, "log": done.stderr.decode()}
    if answer["error"]:
        refuse(answer["log"])
    return image


def build(parts: dict[str, str], image: bytes, mode: str) -> None:
    """Makes the shared library."""
    from jitmoe.compilers.sycl_jit import find_sycl_jit

    library, _ = find_sycl_jit()
    assert library is not None
    dpctl = Path(importlib.util.find_spec("dpctl").submodule_search_locations[0])
    code = LIBRARY_SOURCE % {
        "bytes": ",".join(map(str, image)),
        "abi": 99 if mode == "wrong-abi" else 1,
        "key": "0" * 64 if mode == "wrong-key" else parts["key"],
        "entry": parts["entry"],
        "symbol": "missing" if mode == "no-kernel" else parts["symbol"],
    }
    links = [f"-L{library.library.parent}", "-l:libsycl.so.9", str(dpctl / "libDPCTLSyclInterface.so")]
    if mode == "no-libsycl":
        links = []
    command = ["g++", "-shared", "-fPIC", "-fvisibility=hidden", "-x", "c++", "-", "-o", parts["output"]]
    subprocess.run([*command, "-x", "none", "-Wl,--no-as-needed", *links], input=code.encode(), check=True)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    mode = os.environ.get("FAKE_ICPX_MODE", "")
    if sys.argv[1:] == ["--version"]:
        print(os.environ.get("FAKE_ICPX_VERSION", VERSION))
        print("Target: x86_64-unknown-linux-gnu")
        return
    count = os.environ.get("FAKE_ICPX_COUNT")
    if count:
        with open(count, "a") as stream:
            stream.write("x")
    parts = parse(sys.argv[1:])
    text = Path(parts["source"]).read_text()
    if not text.endswith(HOST_INCLUDE):
        refuse("the source does not end with the host part")
    if mode == "error":
        refuse(f"{parts['source']}:7:3: error: expected expression")
    if mode == "hang":
        child = subprocess.Popen(["sleep", "300"])
        print(os.getpid(), child.pid, file=sys.stderr, flush=True)
        time.sleep(300)
    if mode == "crash":
        os.abort()
    if mode == "no-output":
        return
    build(parts, spirv(parts, text.removesuffix(HOST_INCLUDE)), mode)
    if mode == "warning":
        print("warning: something harmless", file=sys.stderr)


if __name__ == "__main__":
    main()
