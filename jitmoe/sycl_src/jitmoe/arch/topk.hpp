// SPDX-License-Identifier: MIT
// One token's experts and weights, as jitmoe/problems/routing.py describes them, by one sub-group.
//
// The choice values of a token lie in SLM as order-preserving integers ("keys"), in rows of S (sub-group size) experts.
// Lane l looks after column l: the experts l, S + l, 2 S + l ... It keeps its column's largest key; the k largest of all
// are found one after the other as the largest of the lanes', after which all lanes together look through the column
// that lost its largest. Equal keys go to the lower index everywhere. Slot j of the result belongs to lane j % S. The
// weights are computed from the chosen experts' logits, read again, so that no scores have to be kept.
//
// Loops over experts are bounded by an argument, so that the driver's compiler does not unroll them whole: that made
// kernels three times as long, with spills.
//
// SLM: kKeyBytes per sub-group. Rows are S + 1 integers apart, so that neither rows nor columns collide in a bank.
#pragma once

#include <jitmoe/arch/sub_group.hpp>
#include <jitmoe/common/topk_args.hpp>
#include <jitmoe/epilogue/scoring.hpp>

namespace jitmoe::arch {

template <class Config> class TopK {
  static constexpr int32 kSimd = Config::simd;
  static constexpr int32 kExperts = Config::num_experts;
  static constexpr int32 kRows = (kExperts + kSimd - 1) / kSimd;
  static constexpr int32 kGroupSize = kExperts / Config::num_groups;
  static constexpr int32 kGroups = (Config::num_groups + kSimd - 1) / kSimd;  // per lane
  static constexpr int32 kNobody = 0x7fffffff;
  static constexpr float kInfinity = __builtin_inff();
  static constexpr bool kSoftmaxOfAll = Config::scoring == Scoring::softmax && !Config::topk_before_scoring;
  static constexpr bool kSparsemixer = Config::scoring == Scoring::sparsemixer;
  using Logit = element_t<Config::dtype>;
  using Id = element_t<Config::ids_dtype>;

  const TopKArgs& args_;
  JITMOE_LOCAL int32* keys_;

 public:
  static constexpr int32 kSlots = (Config::top_k + kSimd - 1) / kSimd;  // per lane
  static constexpr int32 kKeyBytes = 4 * kRows * (kSimd + 1);

  TopK(const TopKArgs& args, JITMOE_LOCAL void* keys) : args_(args), keys_((JITMOE_LOCAL int32*)keys) {}

  // Writes the weights and ids of `token`. `room`: null, or what each expert still takes. `ids`: where each lane's ids
  // go as well, -1 for slots that are empty or past top_k.
  template <bool capped>
  void choose(int32 token, const JITMOE_LOCAL int32* room, int32 (&ids)[kSlots]) const {
    (void)Config::bias_dtype, (void)Config::topk_groups, (void)Config::group_score;  // not every router has them
    const auto* row = static_cast<const Logit*>(args_.router_logits) + int64(token) * args_.logits_row_stride;
    const int32 lane = lane_id();
    const Normalizer normalizer = write_keys(row);
    uint32 kept = 0;  // bit g: group g remains
    if constexpr (Config::num_groups > 1) {
      sub_group_local_barrier();
      kept = best_groups();
    }

    Candidate mine{epilogue::kNoKey, kNobody};
    for (int32 e = lane; e < args_.num_experts; e += kSimd) {
      bool is_candidate = true;
      if constexpr (Config::num_groups > 1) is_candidate = kept >> (e / kGroupSize) & 1;
      if constexpr (capped) is_candidate = is_candidate && room[e] > 0;
      if (is_candidate) mine.offer(*key_at(e), e);
      else *key_at(e) = epilogue::kNoKey;
    }

    float weights[kSlots];
    _Pragma("unroll") for (int32 r = 0; r < kSlots; ++r) {
      ids[r] = -1;
      weights[r] = 0.0f;
    }
#pragma clang loop unroll(disable)
    for (int32 j = 0; j < Config::top_k; ++j) {
      const Candidate best = mine.best_of_lanes();
      if (capped && best.key == epilogue::kNoKey) break;  // no expert with room is left
      _Pragma("unroll") for (int32 r = 0; r < kSlots; ++r) ids[r] = j == r * kSimd + lane ? best.expert : ids[r];
      if constexpr (kSparsemixer) {
        const float share = share_of_the_near(row, best.expert);
        _Pragma("unroll") for (int32 r = 0; r < kSlots; ++r) weights[r] = j == r * kSimd + lane ? share : weights[r];
      }
      const int32 column = best.expert % kSimd;
      if (lane == column) *key_at(best.expert) = epilogue::kNoKey;
      sub_group_local_barrier();
      Candidate next{epilogue::kNoKey, kNobody};
      for (int32 e = lane * kSimd + column; e < args_.num_experts; e += kSimd * kSimd) next.offer(*key_at(e), e);
      next = next.best_of_lanes();
      if (lane == column) mine = next;
    }
    sub_group_local_barrier();  // the next token's keys come after all lanes have read this one's
    if constexpr (!kSparsemixer) score_chosen(row, normalizer, ids, weights);
    write<capped>(token, ids, weights);
  }

 private:
  struct Normalizer {
    float maximum, sum;  // of a softmax over all experts
  };

  struct Candidate {
    int32 key, expert;

    // For keys that come with ascending experts.
    void offer(int32 other_key, int32 other) {
      expert = other_key > key ? other : expert;
      key = other_key > key ? other_key : key;
    }

    Candidate best_of_lanes() const {
      const int32 largest = sub_group_max(key);
      return {largest, sub_group_min(key == largest ? expert : kNobody)};
    }
  };

  JITMOE_LOCAL int32* key_at(int32 e) const { return keys_ + e + e / kSimd; }

  float logit(const Logit* row, int32 e) const {
    const float x = to_float<Config::dtype>(row[e]);
    if constexpr (Config::has_temperature) return x / args_.temperature;
    else return x;
  }

  // The largest of the lanes' numbers.
  static float largest_number(float x) { return epilogue::number_of_key(sub_group_max(epilogue::order_key(x))); }

  Normalizer write_keys(const Logit* row) const {
    const int32 lane = lane_id();
    Normalizer normalizer{-kInfinity, 0.0f};
    if constexpr (kSoftmaxOfAll) {
      for (int32 e = lane; e < args_.num_experts; e += kSimd) {
        const float x = logit(row, e);
        normalizer.maximum = x > normalizer.maximum ? x : normalizer.maximum;
        *key_at(e) = bit_cast<int32>(x);
      }
      normalizer.maximum = largest_number(normalizer.maximum);
      for (int32 e = lane; e < args_.num_experts; e += kSimd) {
        const float x = epilogue::exp_1ulp<true>(bit_cast<float>(*key_at(e)) - normalizer.maximum);
        normalizer.sum += x;
        *key_at(e) = bit_cast<int32>(x);
      }
      normalizer.sum = sub_group_sum<kSimd>(normalizer.sum);
    }
    for (int32 e = lane; e < args_.num_experts; e += kSimd) {
      float choice;
      if constexpr (kSoftmaxOfAll) choice = epilogue::divide(bit_cast<float>(*key_at(e)), normalizer.sum);
      else if constexpr (Config::topk_before_scoring) choice = logit(row, e);
      else choice = epilogue::score<Config::scoring, true>(logit(row, e));
      if constexpr (Config::has_bias) choice += to_float<Config::bias_dtype>(bias()[e]);
      *key_at(e) = epilogue::order_key(choice);
    }
    return normalizer;
  }

  const element_t<Config::bias_dtype>* bias() const {
    return static_cast<const element_t<Config::bias_dtype>*>(args_.correction_bias);
  }

  uint32 best_groups() const {
    const int32 lane = lane_id();
    int32 scores[kGroups];  // of group r * S + lane
    _Pragma("unroll") for (int32 r = 0; r < kGroups; ++r) scores[r] = epilogue::kNoKey;
#pragma clang loop unroll(disable)
    for (int32 g = 0; g < Config::num_groups; ++g) {
      const int32 score = group_score(g);
      _Pragma("unroll") for (int32 r = 0; r < kGroups; ++r) scores[r] = g == r * kSimd + lane ? score : scores[r];
    }
    uint32 kept = 0;
#pragma clang loop unroll(disable)
    for (int32 n = 0; n < Config::topk_groups; ++n) {
      Candidate mine{epilogue::kNoKey, kNobody};
      _Pragma("unroll") for (int32 r = 0; r < kGroups; ++r) mine.offer(scores[r], r * kSimd + lane);
      const int32 best = mine.best_of_lanes().expert;
      kept |= 1u << best;
      _Pragma("unroll") for (int32 r = 0; r < kGroups; ++r)
        scores[r] = best == r * kSimd + lane ? epilogue::kNoKey : scores[r];
    }
    return kept;
  }

  // The key of the score of group g, from the members' keys.
  int32 group_score(int32 g) const {
    const int32 end = (g + 1) * kGroupSize;
    Candidate best{epilogue::kNoKey, kNobody};
    int32 second = epilogue::kNoKey;
    for (int32 e = g * kGroupSize + lane_id(); e < end; e += kSimd) {
      const int32 key = *key_at(e), smaller = key > best.key ? best.key : key;
      best.offer(key, e);
      second = smaller > second ? smaller : second;
    }
    if constexpr (Config::group_score == GroupScore::max) return sub_group_max(best.key);
    // The lane that has the largest offers its second one, all others their best.
    const Candidate largest = best.best_of_lanes();
    const int32 runner_up = sub_group_max(best.expert == largest.expert ? second : best.key);
    return epilogue::order_key(epilogue::number_of_key(largest.key) + epilogue::number_of_key(runner_up));
  }

  // What the chosen expert gets of a softmax over the experts near it that are left. Every lane looks through its own
  // column, so no barrier is needed before the keys are read.
  float share_of_the_near(const Logit* row, int32 chosen) const {
    const float m = logit(row, chosen);
    float sum = 0.0f;
    for (int32 e = lane_id(); e < args_.num_experts; e += kSimd)
      if (*key_at(e) != epilogue::kNoKey) sum += epilogue::exp_if_near<true>(logit(row, e), m, args_.jitter_eps);
    return epilogue::divide(1.0f, sub_group_sum<kSimd>(sum));
  }

  void score_chosen(
      const Logit* row, const Normalizer& normalizer, const int32 (&ids)[kSlots], float (&weights)[kSlots]) const {
    constexpr bool softmax_of_chosen = Config::scoring == Scoring::softmax && Config::topk_before_scoring;
    Normalizer of{-kInfinity, 0.0f};
    _Pragma("unroll") for (int32 r = 0; r < kSlots; ++r) {
      weights[r] = -kInfinity;
      if (ids[r] >= 0) weights[r] = logit(row, ids[r]);
      of.maximum = weights[r] > of.maximum ? weights[r] : of.maximum;
    }
    if constexpr (softmax_of_chosen) of.maximum = largest_number(of.maximum);
    else of = normalizer;
    float sum = 0.0f;
    _Pragma("unroll") for (int32 r = 0; r < kSlots; ++r) {
      if constexpr (Config::scoring == Scoring::softmax) weights[r] = epilogue::exp_1ulp<true>(weights[r] - of.maximum);
      else weights[r] = epilogue::score<Config::scoring, true>(weights[r]);
      weights[r] = ids[r] >= 0 ? weights[r] : 0.0f;
      sum += weights[r];
    }
    if constexpr (Config::scoring == Scoring::softmax) {
      if constexpr (softmax_of_chosen) of.sum = sub_group_sum<kSimd>(sum);
      _Pragma("unroll") for (int32 r = 0; r < kSlots; ++r) weights[r] = epilogue::divide(weights[r], of.sum);
    }
  }

  template <bool capped> void write(int32 token, const int32 (&ids)[kSlots], const float (&weights)[kSlots]) const {
    const int32 lane = lane_id();
    float divisor = 1.0f;
    if constexpr (Config::renormalize) {
      float sum = 0.0f;
      _Pragma("unroll") for (int32 r = 0; r < kSlots; ++r) sum += weights[r];
      sum = sub_group_sum<kSimd>(sum);
      divisor = (sum < args_.renormalize_min ? args_.renormalize_min : sum) + args_.renormalize_epsilon;
    }
    auto* to = static_cast<float*>(args_.topk_weights) + int64(token) * args_.weights_row_stride;
    auto* to_ids = static_cast<Id*>(args_.topk_ids) + int64(token) * args_.ids_row_stride;
    _Pragma("unroll") for (int32 r = 0; r < kSlots; ++r) {
      const int32 slot = r * kSimd + lane;
      if (slot < Config::top_k) {
        const float weight = (Config::renormalize ? weights[r] / divisor : weights[r]) * args_.scaling_factor;
        to[slot] = !capped || ids[r] >= 0 ? weight : 0.0f;  // without any expert the sum is 0
        to_ids[slot] = ids[r];
      }
    }
    for (int32 s = lane; s < args_.num_shared_experts; s += kSimd) {
      to[Config::top_k + s] = args_.shared_expert_weight;
      to_ids[Config::top_k + s] = kExperts + s;
    }
  }
};

}  // namespace jitmoe::arch
