# SPDX-License-Identifier: MIT
"""The process in which the compiler library of the intel-sycl-rt wheel runs. Started by path; imports no jitmoe.

The library may exit or crash the process on bad input (an unknown SPIR-V extension: exit code 18), so it never runs
in the caller. Input: one JSON object on stdin (library, path, source, options). Output: one line of JSON on the
original stdout, followed by the image's bytes; everything the library prints goes to stderr.

The C ABI of ``compileSYCL`` is not public. The structures below hold for intel-sycl-rt 2026.0 to 2026.2 (checked by
tests/toolchain); 2025.x has the same symbol with another signature, so the caller refuses other majors.
"""

import ctypes
import json
import os
import sys
import time

SPIRV_FORMAT = 2
BUILD_FAILED = 1


class InMemoryFile(ctypes.Structure):
    _fields_ = [("path", ctypes.c_char_p), ("contents", ctypes.c_char_p)]


class View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class Result(ctypes.Structure):
    _fields_ = [
        ("error", ctypes.c_int32),
        ("images", ctypes.c_void_p),
        ("num_images", ctypes.c_size_t),
        ("options", ctypes.c_char_p),
        ("ir", ctypes.c_void_p),
        ("ir_size", ctypes.c_size_t),
        ("log", ctypes.c_char_p),
    ]


class Image(ctypes.Structure):
    _fields_ = [
        ("format", ctypes.c_uint32),
        ("address_bits", ctypes.c_uint64),
        ("start", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("symbols", ctypes.c_void_p),
        ("num_symbols", ctypes.c_size_t),
        ("property_sets", ctypes.c_void_p),
        ("num_property_sets", ctypes.c_size_t),
    ]


class PropertyValue(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("is_uint", ctypes.c_bool),
        ("uint", ctypes.c_uint32),
        ("bytes", ctypes.c_void_p),
        ("num_bytes", ctypes.c_size_t),
    ]


class PropertySet(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("values", ctypes.c_void_p), ("num_values", ctypes.c_size_t)]


def array(element, data, size):
    return ctypes.cast(data, ctypes.POINTER(element))[:size] if size else []


def image_properties(image):
    properties = {}
    for property_set in array(PropertySet, image.property_sets, image.num_property_sets):
        values = {}
        for value in array(PropertyValue, property_set.values, property_set.num_values):
            number = value.uint if value.is_uint else ctypes.string_at(value.bytes, value.num_bytes).hex()
            values[value.name.decode()] = number
        if values:
            properties[property_set.name.decode()] = values
    return properties


def main():
    # The parent may be killed at any moment; a compilation nobody waits for must not go on.
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    reply = os.dup(1)
    os.dup2(2, 1)
    job = json.loads(sys.stdin.buffer.read())

    compile_sycl = ctypes.CDLL(job["library"]).compileSYCL
    compile_sycl.restype = Result
    compile_sycl.argtypes = [InMemoryFile, View, View, View, ctypes.c_bool, ctypes.c_uint32]
    options = (ctypes.c_char_p * len(job["options"]))(*[option.encode() for option in job["options"]])
    started = time.perf_counter()
    result = compile_sycl(
        InMemoryFile(job["path"].encode(), job["source"].encode()),
        View(None, 0),
        View(ctypes.cast(options, ctypes.c_void_p), len(options)),
        View(None, 0),
        False,
        SPIRV_FORMAT,
    )
    answer = {
        "error": result.error,
        "log": (result.log or b"").decode(errors="replace"),
        "seconds": time.perf_counter() - started,
        "image_size": 0,
    }
    image_bytes = b""
    if result.error == 0:
        wanted = ("__sycl_kernel_" + job["kernel"]).encode()
        for image in array(Image, result.images, result.num_images):
            if wanted in array(ctypes.c_char_p, image.symbols, image.num_symbols):
                image_bytes = ctypes.string_at(image.start, image.size)
                answer["properties"] = image_properties(image)
        answer["image_size"] = len(image_bytes)
        if not image_bytes:
            answer["error"] = BUILD_FAILED
            answer["log"] += "\nno image holds the entry point " + wanted.decode()
    with os.fdopen(reply, "wb") as stream:
        stream.write(json.dumps(answer).encode() + b"\n" + image_bytes)
        stream.flush()
        os._exit(0)  # skip the library's static destructors: they cost time and free nothing that outlives us


if __name__ == "__main__":
    main()
