// SPDX-License-Identifier: MIT
// The host side of a kernel library built by icpx: three C functions, nothing else is exported.
//
// Included after the rendered translation unit, which defines the entry point JITMOE_KERNEL_NAME (JITMOE_ENTRY_NAME
// in the plan's words; the compiler renames it, because kernel names are global in a process). The loader
// (jitmoe/runtime/loader.py) compares ABI version and build key before it asks for the kernel.
// The returned kernel is owned by nobody and lives as long as the process: kernel bundles in static storage crash
// at exit (intel/llvm issue 22786).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>

#include <sycl/kernel.hpp>
#include <sycl/kernel_bundle.hpp>
#include <sycl/queue.hpp>

#define JITMOE_ABI_VERSION 1
#define JITMOE_EXPORT extern "C" __attribute__((visibility("default")))

JITMOE_EXPORT std::int32_t jitmoe_abi_version() noexcept { return JITMOE_ABI_VERSION; }

JITMOE_EXPORT const char* jitmoe_build_key() noexcept { return JITMOE_BUILD_KEY; }

// Returns a sycl::kernel* for `name` on the queue's context and device, or nullptr with the reason in `error`.
JITMOE_EXPORT void* jitmoe_get_kernel(const char* name, void* queue, char* error, std::size_t error_size) noexcept {
  const auto fail = [&](const char* text) -> void* {
    std::snprintf(error, error_size, "%s", text);
    return nullptr;
  };
  try {
    if (std::strcmp(name, JITMOE_ENTRY_NAME) != 0) return fail("this library holds " JITMOE_ENTRY_NAME);
    namespace syclexp = sycl::ext::oneapi::experimental;
    const auto& q = *static_cast<sycl::queue*>(queue);
    auto bundle = syclexp::get_kernel_bundle<JITMOE_KERNEL_NAME, sycl::bundle_state::executable>(
        q.get_context(), {q.get_device()});
    return new sycl::kernel(bundle.template ext_oneapi_get_kernel<JITMOE_KERNEL_NAME>());
  } catch (const std::exception& exception) {
    return fail(exception.what());
  } catch (...) {
    return fail("unknown exception");
  }
}
