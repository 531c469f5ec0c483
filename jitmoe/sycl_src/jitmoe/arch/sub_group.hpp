// SPDX-License-Identifier: MIT
// Register vectors, positions, shuffles, barriers and shared local memory of a sub-group's work.
//
// Every wrapper in arch/ takes `emulated` as its first template argument: false selects the instruction of the Xe GPU,
// true a portable body with the same signature and the same lane layout, which runs on any SYCL device. A kernel is
// written once; which of the two its translation unit contains is one constant of its Config.
//
// SPIR-V built-ins (__spirv_*) are known to every device compiler without a header. The host pass of a two-pass
// compiler only parses kernels and never runs them: there the wrappers are empty.
#pragma once

#include <jitmoe/common/types.hpp>

#ifdef __SYCL_DEVICE_ONLY__
#define JITMOE_GLOBAL __attribute__((opencl_global))
#define JITMOE_LOCAL __attribute__((opencl_local))
extern "C" SYCL_EXTERNAL JITMOE_LOCAL unsigned char* __sycl_allocateLocalMemory(
    unsigned long num_bytes, unsigned long alignment);
#else
#define JITMOE_GLOBAL
#define JITMOE_LOCAL
#endif

namespace jitmoe::arch {

typedef int16 i16x8 __attribute__((vector_size(16)));
typedef int32 i32x8 __attribute__((vector_size(32)));
typedef uint32 u32x8 __attribute__((vector_size(32)));
typedef uint32 u32x4 __attribute__((vector_size(16)));
typedef uint32 u32x2 __attribute__((vector_size(8)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));

inline int32 lane_id() {
#ifdef __SYCL_DEVICE_ONLY__
  return int32(__spirv_BuiltInSubgroupLocalInvocationId());
#else
  return 0;
#endif
}

inline int32 sub_group_id() {
#ifdef __SYCL_DEVICE_ONLY__
  return int32(__spirv_BuiltInSubgroupId());
#else
  return 0;
#endif
}

// value of lane `lane`; all lanes take part.
template <class T> inline T shuffle(T value, int32 lane) {
#ifdef __SYCL_DEVICE_ONLY__
  return __spirv_SubgroupShuffleINTEL(value, uint32(lane));
#else
  return value;
#endif
}

// The largest and the smallest of all lanes' values, in every lane. Operation Reduce = 0.
inline int32 sub_group_max(int32 value) {
#ifdef __SYCL_DEVICE_ONLY__
  return __spirv_GroupSMax(3, 0, value);
#else
  return value;
#endif
}

inline int32 sub_group_min(int32 value) {
#ifdef __SYCL_DEVICE_ONLY__
  return __spirv_GroupSMin(3, 0, value);
#else
  return value;
#endif
}

// The sum of all lanes' values, in every lane; neighbours first, so the same bits on every device.
template <int32 simd, class T> inline T sub_group_sum(T value) {
  _Pragma("unroll") for (int32 distance = 1; distance < simd; distance *= 2)
    value += shuffle(value, lane_id() ^ distance);
  return value;
}

// SPIR-V's numbers: Scope Workgroup = 2, Subgroup = 3; MemorySemantics AcquireRelease = 0x8, SubgroupMemory = 0x80,
// WorkgroupMemory = 0x100, CrossWorkgroupMemory = 0x200.
// Orders the work-group's accesses to SLM and global memory before and after it.
inline void work_group_barrier() {
#ifdef __SYCL_DEVICE_ONLY__
  __spirv_ControlBarrier(2, 2, 0x8 | 0x100 | 0x200);
#endif
}

// The same for SLM alone: global memory needs a fence of its own on GPUs, which waits for the stores.
inline void local_memory_barrier() {
#ifdef __SYCL_DEVICE_ONLY__
  __spirv_ControlBarrier(2, 2, 0x8 | 0x100);
#endif
}

// Orders one sub-group's accesses to global memory before and after it, for all its lanes.
inline void sub_group_barrier() {
#ifdef __SYCL_DEVICE_ONLY__
  __spirv_ControlBarrier(3, 3, 0x8 | 0x80 | 0x200);
#endif
}

// The same for SLM.
inline void sub_group_local_barrier() {
#ifdef __SYCL_DEVICE_ONLY__
  __spirv_ControlBarrier(3, 3, 0x8 | 0x100);
#endif
}

// The work-group barrier in two halves, "sbarrier.signal" and "sbarrier.wait" (send.gtwy + sync.bar): it keeps
// sub-groups that share operands in step, so that one's loads are another's cache hits. It orders no memory: nothing
// that one sub-group writes is read by another in the loops that use it, so the portable body is empty. (It could not be
// a full barrier: sub-groups with and without rows reach theirs at different places of the code, which counts on GPUs
// but not on the CPU device.) Every sub-group of the work-group has to pass equally many.
// vISA assembly, because the SPIR-V extension for split barriers is not allowed by the compiler library.
template <bool emulated> inline void barrier_signal() {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) asm volatile("sbarrier.signal");
#endif
}

template <bool emulated> inline void barrier_wait() {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) asm volatile("sbarrier.wait");
#endif
}

// SLM of the work-group, null for none; one call site is one allocation, so call it from exactly one place of a kernel.
template <int32 num_bytes> inline JITMOE_LOCAL void* local_memory() {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (num_bytes > 0) return __sycl_allocateLocalMemory(num_bytes, 64);
#endif
  return nullptr;
}

}  // namespace jitmoe::arch
