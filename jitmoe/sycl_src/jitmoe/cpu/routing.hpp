// SPDX-License-Identifier: MIT
// What the CPU kernels know of the routing, and the layout of the intermediate between the two GEMMs.
//
// A group is all pairs (token * top_k + slot) of one expert, ascending; groups are sorted by expert. With at most
// kFewPairs pairs every work-item finds the groups itself, which is faster than another launch; otherwise they come
// from route_serial.
//
// A group is worked on in blocks of at most kMaxBlockTokens tokens, cut by block_tokens(), the same way in both GEMMs.
// The intermediate (rounded to the activation dtype) of a block is kept in units (simd.hpp), inter_units(I) per token,
// and starts at unit (group.slot + tokens of the blocks before) * inter_units:
//
//   panel   Panel of cpu/tiles.hpp   W2 [N][K] and the lanes form follows
//   rows    [tokens][inter_units]    otherwise; a row of bf16 pairs is a plain bf16 row
#pragma once

#include <jitmoe/common/pairs.hpp>
#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::cpu {

struct Group {
  int32 expert;
  int32 first;   // position of its first pair in the sorted pairs
  int32 tokens;  // pairs in it
  int32 slot;    // first of its align_up(tokens, kSlotGranule) places in the intermediate
};

struct Routing {
  const int32* pairs;
  const Group* groups;
  int32 num_groups;
};

constexpr int kFewPairs = 64;        // Config::few_pairs promises no more; plan/cpu.py names the same number
constexpr int kSlotGranule = 16;     // plan/cpu.py names the same number; lanes of the widest register
constexpr int kMaxBlockTokens = 64;  // tokens of one expert that are handled together
// Measured on Zen 5: up to here the rows form is faster than a padded panel, and that many left-over tokens are better
// handled by it than by padding.
constexpr int kRowsFormTokens = 8;
constexpr int kRowsFormTail = 8;

// Tokens of the next block of a group that has `left` tokens left.
inline int block_tokens(int left) {
  if (left >= 2 * kMaxBlockTokens) return kMaxBlockTokens;
  const int tail = left % kSlotGranule;
  const int whole = left > 2 * kSlotGranule && tail <= kRowsFormTail ? left - tail : left;
  if (whole <= kMaxBlockTokens) return whole;
  return int(align_up(ceil_div(whole, 2), kSlotGranule));  // 80 are 48 and 32: one vector of 16 multiplies slowly
}

template <class Config, Layout w_layout> inline bool uses_lanes_form(int tokens) {
  return !Config::few_pairs && w_layout == Layout::nk && tokens > kRowsFormTokens;
}

inline int padded_tokens(int tokens) { return int(align_up(tokens, kSlotGranule)); }

// Units per token of the intermediate; padded so that whole vectors can be stored.
template <class S> inline int64 inter_units(int64 intermediate_size) {
  return align_up(ceil_div(intermediate_size, S::k_per_unit), 16);
}

// Calls use(t, j, e) for the pairs of tokens [begin, end) that have an expert e here.
template <class Config, class Args, class Use>
inline void for_each_pair(const Args& args, int64 begin, int64 end, const Use& use) {
  for (int64 t = begin; t < end; ++t)
    for (int32 j = 0; j < args.top_k; ++j) {
      const int32 e = local_expert<Config>(args, t, j);
      if (e >= 0) use(t, j, e);
    }
}

struct FewPairs {
  Group groups[kFewPairs];
  int32 pairs[kFewPairs];
  int32 experts[kFewPairs];
};

// Sorts at most kFewPairs pairs by insertion, which keeps the order within an expert.
template <class Config, class Args> inline Routing route_few(const Args& args, FewPairs& s) {
  int32 num_pairs = 0;
#pragma clang loop unroll(disable)
  for (int32 t = 0; t < args.num_tokens; ++t)
#pragma clang loop unroll(disable)
    for (int32 j = 0; j < args.top_k; ++j) {
      const int32 e = local_expert<Config>(args, t, j);
      if (e < 0) continue;
      int32 at = num_pairs++;
#pragma clang loop unroll(disable)
      for (; at > 0 && s.experts[at - 1] > e; --at) {
        s.experts[at] = s.experts[at - 1];
        s.pairs[at] = s.pairs[at - 1];
      }
      s.experts[at] = e;
      s.pairs[at] = t * args.top_k + j;
    }
  int32 num_groups = 0, slot = 0;
#pragma clang loop unroll(disable)
  for (int32 first = 0; first < num_pairs; ++num_groups) {
    int32 end = first + 1;
    while (end < num_pairs && s.experts[end] == s.experts[first]) ++end;
    s.groups[num_groups] = {s.experts[first], first, end - first, slot};
    slot += int32(align_up(end - first, kSlotGranule));
    first = end;
  }
  return {s.pairs, s.groups, num_groups};
}

// The groups, by whichever way Config::few_pairs says. `args` are a kernel's, as route_few and route_serial name them.
template <class Config, class Args> inline Routing find_routing(const Args& args, FewPairs& s) {
  (void)Config::ids_dtype, (void)Config::has_expert_map;  // only read with few pairs
  if constexpr (Config::few_pairs) return route_few<Config>(args, s);
  const auto* groups = static_cast<const Group*>(args.groups);
  return {static_cast<const int32*>(args.sorted_pairs), groups + 1, groups[0].expert};
}

}  // namespace jitmoe::cpu
