// SPDX-License-Identifier: MIT
// 2D block messages (load_block2d / store_block2d, sub-group size 16): a block of a pitched surface moves between
// memory and the registers of a whole sub-group, with bounds checked by the hardware.
//
// A surface is {base address, width in bytes, height in rows, pitch in bytes}. Rules (cl_intel_subgroup_2d_block_io and
// sycl-tla's Xe copy traits; where they differ, the stricter one): base a multiple of 64 B; width >= 64 B and a multiple
// of 4 B; pitch >= width and a multiple of 16 B; all below 2^24; x a multiple of 4 B. Elements outside the surface load
// as 0 and are not stored.
//
// The descriptor ("address payload") is built once per tile and lives in one register; a step through K is one
// instruction that adds to its x. Layouts (t = n = lane; y, x in the payload plus the constant offsets of each call):
//   load     16-bit, R rows x C blocks of 16:  element c * R + r    = M[y + r][x + 16c + t]
//   vnni     16-bit, 32 rows x C blocks of 16: dword c * 16 + i, half h = M[y + 2i + h][x + 16c + n]
//   transposed 32-bit, 16 rows x 8 dwords:     dword i              = dword M[y + t][x + i]   (x in dwords)
//   store    16-bit, 8 rows x 16:              element r -> M[y + r][x + t]
//   bytes    8-bit, R rows x 2 blocks of 16:   element c * R + r    = M[y + r][x + 16c + t]   (x in bytes)
// Source: sycl-tla's copy traits for Xe (block 2D load, VNNI load, transposed load, store), evaluated lane by lane.
//
// Functions of the GPU compiler, not inline assembly: the compiler cannot merge two loads that share a payload.
#pragma once

#include <jitmoe/arch/sub_group.hpp>

namespace jitmoe::arch {

typedef uint16 u16x16 __attribute__((vector_size(32)));
typedef uint16 u16x32 __attribute__((vector_size(64)));
typedef uint16 u16x64 __attribute__((vector_size(128)));
typedef uint8 u8x32 __attribute__((vector_size(32)));
typedef uint8 u8x64 __attribute__((vector_size(64)));
typedef uint32 u32x16 __attribute__((vector_size(64)));
typedef uint32 u32x32 __attribute__((vector_size(128)));

}  // namespace jitmoe::arch

#ifdef __SYCL_DEVICE_ONLY__
extern "C" {
SYCL_EXTERNAL int* __builtin_IB_subgroup_createBlock2DAddressPayload(
    long base, int width_minus_one, int height_minus_one, int pitch_minus_one, int x, int y, int block_width,
    int block_height, int num_blocks);
SYCL_EXTERNAL void __builtin_IB_subgroup_addBlock2DAddressPayloadBlockX(int* payload, int step);
SYCL_EXTERNAL void __builtin_IB_subgroup_addBlock2DAddressPayloadBlockY(int* payload, int step);
// The last argument of each message is the cache policy; 0 is the surface's default.
SYCL_EXTERNAL jitmoe::arch::u16x16 __builtin_IB_subgroup_block_read_ap_u16_m8k16v2(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL jitmoe::arch::u16x32 __builtin_IB_subgroup_block_read_ap_u16_m16k16v2(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL jitmoe::arch::u16x64 __builtin_IB_subgroup_block_read_ap_u16_m32k16v2(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL jitmoe::arch::u32x16 __builtin_IB_subgroup_block_read_ap_transform_u16_m32k16v1(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL jitmoe::arch::u32x32 __builtin_IB_subgroup_block_read_ap_transform_u16_m32k16v2(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL jitmoe::arch::u32x8 __builtin_IB_subgroup_block_read_ap_transpose_u32_m16k8v1(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL jitmoe::arch::u8x32 __builtin_IB_subgroup_block_read_ap_u8_m16k16v2(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL jitmoe::arch::u8x64 __builtin_IB_subgroup_block_read_ap_u8_m32k16v2(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL void __builtin_IB_subgroup_block_read_ap_prefetch_u16_m8k16v2(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL void __builtin_IB_subgroup_block_read_ap_prefetch_u16_m16k16v2(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL void __builtin_IB_subgroup_block_read_ap_prefetch_u16_m32k16v2(
    int* payload, int x, int y, int cache);
SYCL_EXTERNAL void __builtin_IB_subgroup_block_write_ap_u16_m8k16v1(
    int* payload, int x, int y, jitmoe::arch::i16x8 value, int cache);
}
#endif

namespace jitmoe::arch {

struct Surface {
  const void* base;
  int32 width_bytes;
  int32 height;
  int32 pitch_bytes;
};

// A payload for blocks of `rows` x (`blocks` * `columns`) elements of `element_bytes` each.
template <bool emulated, int32 element_bytes, int32 rows, int32 columns, int32 blocks> struct Block2D {
#ifdef __SYCL_DEVICE_ONLY__
  struct Portable {
    const unsigned char* base;
    int32 width, height, pitch, x, y;
    bool legal;
  };
  typename Conditional<emulated, Portable, int*>::type payload;
#endif

  // (x, y) is the first block's position in elements and rows.
  Block2D(const Surface& surface, int32 x, int32 y) {
#ifdef __SYCL_DEVICE_ONLY__
    if constexpr (!emulated) {
      payload = __builtin_IB_subgroup_createBlock2DAddressPayload(
          reinterpret_cast<long>(surface.base), surface.width_bytes - 1, surface.height - 1, surface.pitch_bytes - 1, x,
          y, columns, rows, blocks);
    } else {
      payload = {static_cast<const unsigned char*>(surface.base), surface.width_bytes, surface.height,
                 surface.pitch_bytes, x, y, false};
      payload.legal = reinterpret_cast<uint64>(surface.base) % 64 == 0 && surface.width_bytes >= 64 &&
                      surface.width_bytes % 4 == 0 && surface.pitch_bytes >= surface.width_bytes &&
                      surface.pitch_bytes % 16 == 0;
    }
#endif
  }

  void add_x(int32 step) {
#ifdef __SYCL_DEVICE_ONLY__
    if constexpr (!emulated) __builtin_IB_subgroup_addBlock2DAddressPayloadBlockX(payload, step);
    else payload.x += step;
#endif
  }

  void add_y(int32 step) {
#ifdef __SYCL_DEVICE_ONLY__
    if constexpr (!emulated) __builtin_IB_subgroup_addBlock2DAddressPayloadBlockY(payload, step);
    else payload.y += step;
#endif
  }

#ifdef __SYCL_DEVICE_ONLY__
  // The element at column x, row y of the surface. A use that breaks the rules above has no meaning on hardware; the
  // portable body answers with a NaN pattern, which no test overlooks.
  template <class T> T element(int32 x, int32 y) const {
    if (!payload.legal || payload.x * element_bytes % 4 != 0) return T(0x7fff7fffu);
    const bool inside = x >= 0 && y >= 0 && x * int32(sizeof(T)) < payload.width && y < payload.height;
    return inside ? *reinterpret_cast<const T*>(payload.base + int64(y) * payload.pitch + x * int64(sizeof(T))) : T(0);
  }
#endif
};

template <bool emulated, int32 rows, int32 blocks> using LoadPayload = Block2D<emulated, 2, rows, 16, blocks>;
template <bool emulated, int32 rows> using BytesPayload = Block2D<emulated, 1, rows, 16, 2>;
template <bool emulated> using TransposedPayload = Block2D<emulated, 4, 16, 8, 1>;
template <bool emulated> using StorePayload = Block2D<emulated, 2, 8, 16, 1>;

// Plain load, two blocks: out[0 .. rows) = k 0..15, out[rows .. 2 rows) = k 16..31 of the rows.
template <bool emulated, int32 rows>
inline void load(const LoadPayload<emulated, rows, 2>& block, int32 x, int32 y, uint16 (&out)[2 * rows]) {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) {
    const auto keep = [&](auto value) {
      _Pragma("unroll") for (int32 i = 0; i < 2 * rows; ++i) out[i] = value[i];
    };
    if constexpr (rows == 8) keep(__builtin_IB_subgroup_block_read_ap_u16_m8k16v2(block.payload, x, y, 0));
    else if constexpr (rows == 16) keep(__builtin_IB_subgroup_block_read_ap_u16_m16k16v2(block.payload, x, y, 0));
    else keep(__builtin_IB_subgroup_block_read_ap_u16_m32k16v2(block.payload, x, y, 0));
  } else {
    for (int32 c = 0; c < 2; ++c)
      for (int32 r = 0; r < rows; ++r)
        out[c * rows + r] =
            block.template element<uint16>(block.payload.x + x + 16 * c + lane_id(), block.payload.y + y + r);
  }
#endif
}

// Plain load of bytes, two blocks: out[0 .. rows) = bytes 0..15, out[rows .. 2 rows) = bytes 16..31 of the rows.
template <bool emulated, int32 rows>
inline void load_bytes(const BytesPayload<emulated, rows>& block, int32 x, int32 y, uint8 (&out)[2 * rows]) {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) {
    const auto keep = [&](auto value) {
      _Pragma("unroll") for (int32 i = 0; i < 2 * rows; ++i) out[i] = value[i];
    };
    if constexpr (rows == 16) keep(__builtin_IB_subgroup_block_read_ap_u8_m16k16v2(block.payload, x, y, 0));
    else keep(__builtin_IB_subgroup_block_read_ap_u8_m32k16v2(block.payload, x, y, 0));
  } else {
    for (int32 c = 0; c < 2; ++c)
      for (int32 r = 0; r < rows; ++r)
        out[c * rows + r] =
            block.template element<uint8>(block.payload.x + x + 16 * c + lane_id(), block.payload.y + y + r);
  }
#endif
}

// VNNI load of 32 rows (k) x `blocks` blocks of 16 columns (n): out[16c + i] pairs rows 2i and 2i + 1.
template <bool emulated, int32 blocks>
inline void load_vnni(const LoadPayload<emulated, 32, blocks>& block, int32 x, int32 y, uint32 (&out)[16 * blocks]) {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) {
    const auto keep = [&](auto value) {
      _Pragma("unroll") for (int32 i = 0; i < 16 * blocks; ++i) out[i] = value[i];
    };
    if constexpr (blocks == 1) keep(__builtin_IB_subgroup_block_read_ap_transform_u16_m32k16v1(block.payload, x, y, 0));
    else keep(__builtin_IB_subgroup_block_read_ap_transform_u16_m32k16v2(block.payload, x, y, 0));
  } else {
    for (int32 c = 0; c < blocks; ++c)
      for (int32 i = 0; i < 16; ++i) {
        const int32 column = block.payload.x + x + 16 * c + lane_id(), row = block.payload.y + y + 2 * i;
        const uint32 low = block.template element<uint16>(column, row);
        const uint32 high = block.template element<uint16>(column, row + 1);
        out[16 * c + i] = low | high << 16;
      }
  }
#endif
}

// Transposed load of 16 rows x 8 dwords: of a K-contiguous 16-bit matrix this is the B operand of dpas (16 k).
template <bool emulated>
inline u32x8 load_transposed(const TransposedPayload<emulated>& block, int32 x, int32 y) {
  u32x8 out = {};
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) return __builtin_IB_subgroup_block_read_ap_transpose_u32_m16k8v1(block.payload, x, y, 0);
  for (int32 i = 0; i < 8; ++i)
    if constexpr (emulated)
      out[i] = block.template element<uint32>(block.payload.x + x + i, block.payload.y + y + lane_id());
#endif
  return out;
}

// Brings a block towards the caches; no result, no effect in the portable body.
template <bool emulated, int32 rows>
inline void prefetch(const LoadPayload<emulated, rows, 2>& block, int32 x, int32 y) {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) {
    if constexpr (rows == 8) __builtin_IB_subgroup_block_read_ap_prefetch_u16_m8k16v2(block.payload, x, y, 0);
    else if constexpr (rows == 16) __builtin_IB_subgroup_block_read_ap_prefetch_u16_m16k16v2(block.payload, x, y, 0);
    else __builtin_IB_subgroup_block_read_ap_prefetch_u16_m32k16v2(block.payload, x, y, 0);
  }
#endif
}

// Stores 8 rows x 16 columns; rows and columns outside the surface are dropped.
template <bool emulated>
inline void store(const StorePayload<emulated>& block, int32 x, int32 y, i16x8 value) {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) {
    __builtin_IB_subgroup_block_write_ap_u16_m8k16v1(block.payload, x, y, value, 0);
  } else {
    const int32 column = block.payload.x + x + lane_id();
    for (int32 r = 0; r < 8; ++r) {
      const int32 row = block.payload.y + y + r;
      if (!block.payload.legal || column < 0 || row < 0 || column * 2 >= block.payload.width ||
          row >= block.payload.height)
        continue;
      *reinterpret_cast<int16*>(const_cast<unsigned char*>(block.payload.base) + int64(row) * block.payload.pitch +
                                column * int64(2)) = value[r];
    }
  }
#endif
}

}  // namespace jitmoe::arch
