// SPDX-License-Identifier: MIT
// Loads for GPUs without 2D blocks (dg2), and for rows that a 2D surface cannot describe.
//
//   read_row       one message for a sub-group: lane t, dword i = dword[simd * i + t] of contiguous memory, 4 B aligned.
//                  At sub-group size 8 two dwords are 32 16-bit elements: the A operands of two dpas (arch/dpas.hpp).
//                  (load.ugm.d32x16t; source: intel_sub_group_block_read2 in cl_intel_subgroups)
//   read_lane      each lane 32 contiguous bytes of its own row, 4 B aligned: of K-contiguous 16-bit rows this is the
//                  B operand of dpas for 16 k. (load.ugm.d32x8, a gather of per-lane addresses)
#pragma once

#include <jitmoe/arch/sub_group.hpp>

#ifdef __SYCL_DEVICE_ONLY__
SYCL_EXTERNAL jitmoe::arch::u32x2 intel_sub_group_block_read2(
    const JITMOE_GLOBAL jitmoe::uint32* first);
#endif

namespace jitmoe::arch {

template <bool emulated, int32 simd> inline u32x2 read_row(const void* first) {
  u32x2 out = {};
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) return intel_sub_group_block_read2((const JITMOE_GLOBAL uint32*)first);
  const auto* dwords = static_cast<const uint32*>(first);
  out[0] = dwords[lane_id()];
  out[1] = dwords[simd + lane_id()];
#endif
  return out;
}

// No portable twin is needed: it is an ordinary vector load.
inline u32x8 read_lane(const void* first) {
  typedef uint32 unaligned_u32x8 __attribute__((vector_size(32), aligned(4)));
  return *static_cast<const unaligned_u32x8*>(first);
}

}  // namespace jitmoe::arch
