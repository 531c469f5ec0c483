// SPDX-License-Identifier: MIT
// Reads memory as fast as a CPU can: the limit that a memory-bound kernel is measured against (tools/bench_moe.py).
// Which way is the fastest differs between CPUs, so the tool tries several numbers of streams and distances.
//
// | tensor | shape                    | dtype | layout, owner
// | data   | [groups][bytes / 4]      | int32 | dense; caller's
// | out    | [groups]                 | int32 | the xor of everything read, so that nothing is left out
//
// nd_range: (groups), work-groups of 1 work-item; bytes is a multiple of 256 * streams. A group reads `streams` equal
// parts of its data in turn, 256 bytes of each, and asks for what lies prefetch_bytes ahead (0: for nothing).
#pragma once

#include <jitmoe/cpu/simd.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

struct CpuProbeReadArgs {
  const void* data;
  void* out;
  int64 bytes;
};

template <class Config> inline void cpu_probe_read(const CpuProbeReadArgs& args) {
  using namespace jitmoe::cpu;
  constexpr int lanes = simd_lanes(Config::isa);
  using units = Vec<uint32, lanes>;
  const int64 group = nd_item<1>().get_group(0);
  const auto* data = static_cast<const uint8*>(args.data) + group * args.bytes;
  const int64 part = args.bytes / Config::streams;
  units sums[4] = {units(0u), units(0u), units(0u), units(0u)};
  for (int64 at = 0; at < part; at += 256)
#pragma clang loop unroll(disable)
    for (int stream = 0; stream < Config::streams; ++stream) {
      const uint8* from = data + stream * part + at;
      if constexpr (Config::prefetch_bytes != 0)
#pragma unroll
        for (int line = 0; line < 256; line += 64) prefetch(from + Config::prefetch_bytes + line);
#pragma unroll
      for (int i = 0; i < 256 / (4 * lanes); ++i) sums[i % 4] ^= load<units>(from + i * 4 * lanes);
    }
  const units all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  uint32 sum = 0;
  for (int l = 0; l < lanes; ++l) sum ^= all[l];
  static_cast<uint32*>(args.out)[group] = sum;
}

}  // namespace jitmoe::kernel
