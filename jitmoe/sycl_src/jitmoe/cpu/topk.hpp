// SPDX-License-Identifier: MIT
// One token's experts and weights, as jitmoe/problems/routing.py describes them, with vectors along the experts.
//
// The values of a row (E logits, scores, keys) lie in the work-item's own arrays, which stay in the L1 cache. The k
// largest are found one after the other: each pass keeps, per lane, the largest key and the first vector it was in; the
// lanes are then compared in pairs. Equal keys go to the lower index in both steps.
#pragma once

#include <jitmoe/common/topk_args.hpp>
#include <jitmoe/cpu/simd.hpp>
#include <jitmoe/epilogue/scoring.hpp>

namespace jitmoe::cpu {

template <class Config> class TopK {
  static constexpr int kLanes = simd_lanes(Config::isa);
  static constexpr bool kFused = Config::isa != CpuIsa::generic;
  static constexpr int kExperts = Config::num_experts;
  static constexpr int kVectors = (kExperts + kLanes - 1) / kLanes;
  static constexpr int kSlotVectors = (Config::top_k + kLanes - 1) / kLanes;
  static constexpr int kGroupSize = kExperts / Config::num_groups;
  static constexpr float kInfinity = __builtin_inff();
  using F = Vec<float, kLanes>;
  using I = Vec<int32, kLanes>;

 public:
  // Fills `weights` and `ids` from the logits of one token. `room`: null, or what each expert still takes.
  template <bool capped> void choose(const TopKArgs& args, int64 token, const int32* room) {
    (void)Config::bias_dtype, (void)Config::topk_groups, (void)Config::group_score;  // not every router has them
    score_row(args, token);
    if constexpr (Config::num_groups > 1) keep_best_groups();
    if constexpr (capped)
      for (int e = 0; e < kExperts; ++e)
        if (room[e] <= 0) keys_[e] = epilogue::kNoKey;
    for (int j = 0; j < Config::top_k; ++j) {
      const Best best = largest_key();
      const bool empty = capped && best.key == epilogue::kNoKey;
      ids_[j] = empty ? -1 : best.index;
      if constexpr (Config::scoring == Scoring::sparsemixer) weights_[j] = share_of_the_near(args, best.index);
      else weights_[j] = empty ? -kInfinity : scores_[best.index];
      if (!empty) keys_[best.index] = epilogue::kNoKey;
    }
    finish_weights<capped>(args);
  }

  void write(const TopKArgs& args, int64 token) const {
    auto* weights = static_cast<float*>(args.topk_weights) + token * args.weights_row_stride;
    auto* ids = static_cast<element_t<Config::ids_dtype>*>(args.topk_ids) + token * args.ids_row_stride;
    for (int j = 0; j < Config::top_k; ++j) {
      weights[j] = weights_[j];
      ids[j] = ids_[j];
    }
    for (int j = 0; j < args.num_shared_experts; ++j) {
      weights[Config::top_k + j] = args.shared_expert_weight;
      ids[Config::top_k + j] = kExperts + j;
    }
  }

 private:
  struct Best {
    int32 key, index;
  };

  // Positions of lanes, as a vector.
  template <int... l> static I lane_numbers(Sequence<int, l...>) { return I{l...}; }
  static I lane_numbers() { return lane_numbers(__make_integer_seq<Sequence, int, kLanes>{}); }

  // The row's logits, `fill` in the lanes past the last expert.
  static F load_row(const element_t<Config::dtype>* row, int v, float fill) {
    if (v + 1 < kVectors || kExperts % kLanes == 0) return load_floats<Config::dtype, kLanes>(row + v * kLanes);
    element_t<Config::dtype> tail[kLanes];
    copy_tail(row + v * kLanes, kExperts - v * kLanes, tail, kLanes);
    const F x = load_floats<Config::dtype, kLanes>(tail);
    return lane_numbers() < kExperts - v * kLanes ? x : F(fill);
  }

  template <int lanes> static float reduce_max(Vec<float, lanes> x) {
    if constexpr (lanes == 1) return x[0];
    else return reduce_max<lanes / 2>(x.lo > x.hi ? x.lo : x.hi);
  }

  void score_row(const TopKArgs& args, int64 token) {
    const auto* row = static_cast<const element_t<Config::dtype>*>(args.router_logits) + token * args.logits_row_stride;
    constexpr bool softmax = Config::scoring == Scoring::softmax && !Config::topk_before_scoring;
    F largest = F(-kInfinity), sum = F(0.0f);
    for (int v = 0; v < kVectors; ++v) {
      F x = load_row(row, v, -kInfinity);
      if constexpr (Config::has_temperature) x /= args.temperature;
      if constexpr (softmax) largest = x > largest ? x : largest;
      else if constexpr (!Config::topk_before_scoring) x = epilogue::score<Config::scoring, kFused>(x);
      store(scores_ + v * kLanes, x);
    }
    if constexpr (softmax) {
      const float maximum = reduce_max<kLanes>(largest);
      for (int v = 0; v < kVectors; ++v) {
        const F e = epilogue::exp_1ulp<kFused>(load<F>(scores_ + v * kLanes) - maximum);
        // Lanes past the last expert hold exp(-inf) = 0, or NaN if every logit is -inf, as the others then.
        sum += e;
        store(scores_ + v * kLanes, e);
      }
      const F total = F(fold<kLanes, 1>(sum)[0]);
      for (int v = 0; v < kVectors; ++v) store(scores_ + v * kLanes, load<F>(scores_ + v * kLanes) / total);
    }
    for (int v = 0; v < kVectors; ++v) {
      F choice = load<F>(scores_ + v * kLanes);
      if constexpr (Config::has_bias) choice += load_bias(args, v);
      if constexpr (Config::num_groups > 1) store(choices_ + v * kLanes, choice);
      I key = epilogue::order_key(choice);
      if (v + 1 == kVectors && kExperts % kLanes)
        key = lane_numbers() < kExperts - v * kLanes ? key : I(epilogue::kNoKey);
      store(keys_ + v * kLanes, key);
    }
  }

  static F load_bias(const TopKArgs& args, int v) {
    const auto* bias = static_cast<const element_t<Config::bias_dtype>*>(args.correction_bias) + v * kLanes;
    if (v + 1 < kVectors || kExperts % kLanes == 0) return load_floats<Config::bias_dtype, kLanes>(bias);
    element_t<Config::bias_dtype> tail[kLanes];
    copy_tail(bias, kExperts - v * kLanes, tail, kLanes);
    return load_floats<Config::bias_dtype, kLanes>(tail);
  }

  struct Top2 {
    float first, second;
  };

  // The two largest of the lanes' two largest each.
  template <int lanes> static Top2 top2(Vec<float, lanes> first, Vec<float, lanes> second) {
    if constexpr (lanes == 1) {
      return {first[0], second[0]};
    } else {
      const auto a = first.lo, b = first.hi;
      const auto larger = a > b ? a : b, smaller = a > b ? b : a;
      const auto seconds = second.lo > second.hi ? second.lo : second.hi;
      return top2<lanes / 2>(larger, smaller > seconds ? smaller : seconds);
    }
  }

  float group_score(int group) const {
    const float* members = choices_ + group * kGroupSize;
    F first = F(-kInfinity), second = F(-kInfinity);
    for (int at = 0; at < kGroupSize; at += kLanes) {
      F x = load<F>(members + at);
      if (kGroupSize % kLanes && at + kLanes > kGroupSize) x = lane_numbers() < kGroupSize - at ? x : F(-kInfinity);
      const F smaller = x > first ? first : x;
      first = x > first ? x : first;
      second = smaller > second ? smaller : second;
    }
    if constexpr (Config::group_score == GroupScore::max) return reduce_max<kLanes>(first);
    const Top2 best = top2<kLanes>(first, second);
    return best.first + best.second;
  }

  // Takes the experts of all but the best groups out of the choice.
  void keep_best_groups() {
    int32 scores[Config::num_groups];
    for (int g = 0; g < Config::num_groups; ++g) scores[g] = epilogue::order_key(group_score(g));
    for (int i = 0; i < Config::topk_groups; ++i) {
      int best = 0;
      for (int g = 1; g < Config::num_groups; ++g)
        if (scores[g] > scores[best]) best = g;
      scores[best] = epilogue::kNoKey;
    }
    for (int g = 0; g < Config::num_groups; ++g)
      if (scores[g] != epilogue::kNoKey)
        for (int i = 0; i < kGroupSize; ++i) keys_[g * kGroupSize + i] = epilogue::kNoKey;
  }

  template <int lanes> static Best best_lane(Vec<int32, lanes> key, Vec<int32, lanes> index) {
    if constexpr (lanes == 1) {
      return {key[0], index[0]};
    } else {
      const auto other_wins = (key.hi > key.lo) | ((key.hi == key.lo) & (index.hi < index.lo));
      return best_lane<lanes / 2>(other_wins ? key.hi : key.lo, other_wins ? index.hi : index.lo);
    }
  }

  Best largest_key() const {
    I key = load<I>(keys_), at = I(0);
    for (int v = 1; v < kVectors; ++v) {
      const I x = load<I>(keys_ + v * kLanes);
      at = x > key ? I(v) : at;
      key = x > key ? x : key;
    }
    return best_lane<kLanes>(key, at * kLanes + lane_numbers());
  }

  // sparsemixer: what the chosen expert gets of a softmax over the experts near it that are left. scores_ are logits.
  float share_of_the_near(const TopKArgs& args, int32 chosen) const {
    const F m = F(scores_[chosen]);
    F sum = F(0.0f);
    for (int v = 0; v < kVectors; ++v) {
      const F e = epilogue::exp_if_near<kFused>(load<F>(scores_ + v * kLanes), m, args.jitter_eps);
      sum += load<I>(keys_ + v * kLanes) == epilogue::kNoKey ? F(0.0f) : e;
    }
    return 1.0f / fold<kLanes, 1>(sum)[0];
  }

  template <bool capped> void finish_weights(const TopKArgs& args) {
    constexpr bool scored = Config::scoring == Scoring::none || Config::scoring == Scoring::sparsemixer;
    if constexpr (Config::topk_before_scoring && !scored) {
      // Slots past top_k hold -inf: score 0, nothing in sums.
      for (int j = Config::top_k; j < kSlotVectors * kLanes; ++j) weights_[j] = -kInfinity;
      float largest = weights_[0];
      if constexpr (Config::has_bias)  // the order is that of the choice values then
        for (int j = 1; j < Config::top_k; ++j) largest = weights_[j] > largest ? weights_[j] : largest;
      float sum = 0.0f;
      for (int v = 0; v < kSlotVectors; ++v) {
        F x = load<F>(weights_ + v * kLanes);
        if constexpr (Config::scoring == Scoring::softmax) x = epilogue::exp_1ulp<kFused>(x - largest);
        else x = epilogue::score<Config::scoring, kFused>(x);
        store(weights_ + v * kLanes, x);
      }
      if constexpr (Config::scoring == Scoring::softmax) {
        for (int j = 0; j < Config::top_k; ++j) sum += weights_[j];
        for (int j = 0; j < Config::top_k; ++j) weights_[j] /= sum;
      }
    }
    if constexpr (capped)
      for (int j = 0; j < Config::top_k; ++j)
        if (ids_[j] < 0) weights_[j] = 0.0f;
    if constexpr (Config::renormalize) {
      float sum = 0.0f;
      for (int j = 0; j < Config::top_k; ++j) sum += weights_[j];
      sum = (sum < args.renormalize_min ? args.renormalize_min : sum) + args.renormalize_epsilon;
      for (int j = 0; j < Config::top_k; ++j) weights_[j] /= sum;
    }
    for (int j = 0; j < Config::top_k; ++j) {
      weights_[j] *= args.scaling_factor;
      if (capped && ids_[j] < 0) weights_[j] = 0.0f;  // without any expert the sum is 0
    }
  }

  // Vectors of a group may start at any expert, so a load can reach kLanes past the last.
  alignas(64) float scores_[kVectors * kLanes];
  alignas(64) float choices_[Config::num_groups > 1 ? (kVectors + 1) * kLanes : 1];
  alignas(64) int32 keys_[kVectors * kLanes];
  alignas(64) float weights_[kSlotVectors * kLanes];
  int32 ids_[Config::top_k];
};

}  // namespace jitmoe::cpu
