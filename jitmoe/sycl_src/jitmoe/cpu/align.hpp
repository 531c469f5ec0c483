// SPDX-License-Identifier: MIT
// (token, slot) pairs sorted by expert, each expert's padded to whole blocks: a stable counting sort over ranges of
// tokens, for CPU devices. Tensors: common/align_args.hpp.
//
//   count   how many pairs of a range go to each expert
//   place   first places from the counts of all ranges (every range adds them up for itself, which saves a launch), then
//           the range's pairs to their places, and its share of all that is not a pair
#pragma once

#include <jitmoe/common/align_args.hpp>
#include <jitmoe/cpu/routing.hpp>

namespace jitmoe::cpu {

template <class Config> struct Align {
  const AlignArgs& args;

  struct Part {
    int64 begin, end;
  };
  // The share of a range in `size` things, whole multiples of `granule`.
  Part share(int64 size, int32 range, int64 granule) const {
    const int64 each = align_up(ceil_div(size, args.num_ranges), granule);
    const int64 begin = range * each, end = begin + each;
    return {begin < size ? begin : size, end < size ? end : size};
  }

  int32* counts(int32 range) const { return static_cast<int32*>(args.counts) + int64(range) * args.num_experts; }

  template <class Use> void for_each_pair(int32 range, const Use& use) const {
    const Part tokens = share(args.num_tokens, range, 1);
    cpu::for_each_pair<Config>(args, tokens.begin, tokens.end, use);
  }

  void count(int32 range) const {
    int32* here = counts(range);
    for (int32 e = 0; e < args.num_experts; ++e) here[e] = 0;
    for_each_pair(range, [&](int64, int32, int32 e) { ++here[e]; });
    const Part zeroed = share(args.zeroed_bytes, range, 64);
    if (zeroed.end > zeroed.begin)
      __builtin_memset(static_cast<uint8*>(args.output) + zeroed.begin, 0, zeroed.end - zeroed.begin);
  }

  void place(int32 range) const {
    auto* sorted = static_cast<int32*>(args.sorted_token_ids);
    auto* experts = static_cast<int32*>(args.expert_ids);
    auto* cursors = static_cast<int32*>(args.cursors) + int64(range) * args.num_experts;
    int32 start = 0;
    for (int32 e = 0; e < args.num_experts; ++e) {
      int32 before = 0, total = 0;
      for (int32 r = 0; r < args.num_ranges; ++r) {
        before += r < range ? counts(r)[e] : 0;
        total += counts(r)[e];
      }
      cursors[e] = start + before;
      const int32 end = start + int32(align_up(total, args.block_size));
      if (e % args.num_ranges == range) {
        pad(start + total, end);
        for (int32 block = start / args.block_size; block < end / args.block_size; ++block) experts[block] = e;
      }
      start = end;
    }
    const Part rest = share(args.num_sorted - start, range, 16);
    pad(start + int32(rest.begin), start + int32(rest.end));
    if (range == 0) {
      for (int32 block = start / args.block_size; block < args.num_blocks; ++block) experts[block] = -1;
      *static_cast<int32*>(args.num_tokens_post_pad) = start;
    }
    for_each_pair(range, [&](int64 t, int32 j, int32 e) {
      const int32 at = cursors[e]++;
      sorted[at] = int32(t * args.top_k + j);
      if constexpr (Config::has_weights) {
        const auto* weights = static_cast<const element_t<Config::weights_dtype>*>(args.topk_weights);
        static_cast<float*>(args.sorted_weights)[at] =
            to_float<Config::weights_dtype>(weights[t * args.topk_weights_row_stride + j]);
      }
    });
    (void)Config::weights_dtype;  // only read with weights
  }

 private:
  void pad(int32 begin, int32 end) const {
    const int32 sentinel = args.num_tokens * args.top_k;
    for (int32 at = begin; at < end; ++at) static_cast<int32*>(args.sorted_token_ids)[at] = sentinel;
    if constexpr (Config::has_weights)
      for (int32 at = begin; at < end; ++at) static_cast<float*>(args.sorted_weights)[at] = 0.0f;
  }
};

}  // namespace jitmoe::cpu
