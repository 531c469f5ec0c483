// SPDX-License-Identifier: MIT
// tiles form: C = W X^T for two groups of 16 weight rows and any number of tokens, with AMX.
//
//   W   16 + 16 rows of K elements; read where they are if they are bf16 or fp16 [N][K] or multiplied as int8, else
//       staged: `stage` writes a piece of them as bf16 (or fp16) [2][16][staged_k] to a small buffer. So a weight format
//       is one staging function.
//   X   token tiles [K / 32][16 units][16 tokens], token_tile_dwords<W>(K) apart, zero past K
//   C   sums[token tile][2][16 rows][16 tokens], fp32 (int32 if int8 are multiplied and blocks have no scales)
//
// Quantized weights and inputs with scales for blocks of K (sum_block_of<W>), int8 with 16-bit fixed-point inputs among
// them: the sums of each block are scaled and added up in fp32 (amx_blocks.hpp). The inputs' scales, [blocks][16 tokens]
// fp32, follow each of X's tiles.
//
// An element of K is a bf16 or an fp16, or two int8 (amx.hpp). Where numbers of X have two parts (parts_of<W>), each tile of
// their high parts is followed by one of their low parts.
//
// Weights come from memory in pieces of 32 rows x kPieceK elements. While one is multiplied the next is asked for,
// evenly spread over the multiplications (and over staging, where that takes long); `beside()` is called after each
// multiplication (beside.hpp). A weight format that needs conversion is a TileWeights struct of its own. [K][N] weights are
// read in another order: see Turns.
//
// Letters: n weight row, t token, k element of K.
#pragma once

#include <jitmoe/cpu/amx.hpp>
#include <jitmoe/cpu/amx_blocks.hpp>
#include <jitmoe/cpu/beside.hpp>
#include <jitmoe/cpu/simd.hpp>
#include <jitmoe/cpu/tiles.hpp>

namespace jitmoe::cpu {

constexpr int kMaxTiles = 16;     // token tiles of one call; plan/cpu.py names the same number
constexpr int kMaxSums = 2 * kMaxTiles;  // those of two steps, or of more that have fewer token tiles
constexpr int64 kPieceK = 2048;   // 4 KiB per row: long enough for the memory, short enough for the L2 cache
constexpr int64 kSoonBytes = 1 << 19;  // tokens are asked for this many bytes of weights ahead of their use
constexpr int64 kAllOfK = int64(1) << 40;  // rows that do not take turns
constexpr int kTogether = 8;      // multiplications of one loop; a mispredicted end before tiles are stored costs 500 cycles

// Two groups of 16 weight rows of one expert. Rows past num_rows do not exist and count as zero.
template <class Element> struct WeightRows {
  const Element* first[2];
  int num_rows[2];
  int64 stride;  // elements between two rows (nk), or between two k (kn)
};

// Cache lines that will be needed, asked for a few at a time: `rows` rows of `row_bytes` in each of four places. One
// place alone is slower: pages are too short for the hardware to look ahead far enough in one.
struct Lines {
  static constexpr int kPlaces = 4;
  const uint8* at[kPlaces] = {};
  int64 row_bytes = 0;
  int64 stride_bytes = 0;
  int64 rows = 0;
  int64 column = 0;

  // Of each place.
  int64 count() const { return rows * ceil_div(row_bytes, 64) - column / 64; }

  // Asks for the next `number` lines of each place.
  void fetch(int number) {
#pragma clang loop unroll(disable)
    for (int i = 0; i < number && rows > 0; ++i) {
#pragma unroll
      for (int place = 0; place < kPlaces; ++place) prefetch(at[place] + column);
      column += 64;
      if (column >= row_bytes) {
        column = 0;
#pragma unroll
        for (int place = 0; place < kPlaces; ++place) at[place] += stride_bytes;
        --rows;
      }
    }
  }

  // `num_bytes` (a multiple of 256) dense bytes.
  static Lines dense(const void* from, int64 num_bytes) {
    const auto* first = static_cast<const uint8*>(from);
    const int64 part = num_bytes / kPlaces;
    return {{first, first + part, first + 2 * part, first + 3 * part}, part, 0, 1};
  }
  // `rows` rows (a multiple of two) from each of two addresses.
  static Lines of_rows(const void* first, const void* second, int64 row_bytes, int64 stride_bytes, int64 rows) {
    const auto* a = static_cast<const uint8*>(first);
    const auto* b = static_cast<const uint8*>(second);
    const int64 half = rows / 2;
    return {{a, a + half * stride_bytes, b, b + half * stride_bytes}, row_bytes, stride_bytes, half};
  }
};

// How weights become tiles. A format is such a struct; one that is never `in_place` only stages.
//   staged_k   elements of K that are staged together, and the distance of staged rows
//   turn_k     elements of K after which other rows take their turn; a multiple of staged_k
//   stage   writes elements [k0, k0 + num_k) of W's rows as staged[2][16][staged_k], zero where there are none
//   lines   the cache lines of elements [k0, k0 + num_k)
//   asks_while_staging   half of the next ones are asked for after staged rows, and only the others after multiplications
template <class S, Layout layout> struct TileWeights;

// Rows of K elements of two bytes, which tiles read where they are; staged are only the ends of rows and groups of fewer
// than 16.
struct TilesInPlace {
  static constexpr bool in_place = true;
  static constexpr bool asks_while_staging = false;
  static constexpr int64 staged_k = 512;
  static constexpr int64 turn_k = kAllOfK;

  template <class Rows> static const uint8* row(const Rows& w, int a, int64 n) {
    return reinterpret_cast<const uint8*>(w.first[a]) + n * row_bytes(w);
  }
  template <class Rows> static int64 row_bytes(const Rows& w) { return w.stride * int64(sizeof(*w.first[0])); }

  template <class Rows> static void stage(const Rows& w, int64 k0, int64 num_k, int64 k, uint16* staged) {
    const int64 left = k - k0 < num_k ? k - k0 : num_k;
    for (int a = 0; a < 2; ++a)
      for (int n = 0; n < amx::kRows; ++n)
        copy_tail(reinterpret_cast<const uint16*>(row(w, a, n)) + k0, n < w.num_rows[a] ? left : 0,
                  staged + (a * amx::kRows + n) * staged_k, int(num_k));
  }
  template <class Rows> static Lines lines(const Rows& w, int64 k0, int64 num_k) {
    return Lines::of_rows(row(w, 0, 0) + 2 * k0, row(w, 1, 0) + 2 * k0, 2 * num_k, row_bytes(w), amx::kRows);
  }
};

// [N][K] bf16, or fp16 that are multiplied as such.
template <class S> struct TileWeights<S, Layout::nk> : TilesInPlace {
  using Rows = WeightRows<uint16>;
  using Element = uint16;
};

// [K][N]: pairs of k are interleaved and transposed in registers. Each k is in a page of its own, and lines of k that are a
// power of two apart share few places of the L1 cache: steps take turns, so that all of a page that a work-item needs is read
// before the next ones are.
template <class S> struct TileWeights<S, Layout::kn> {
  using Rows = WeightRows<uint16>;
  using Element = uint16;
  static constexpr bool in_place = false;
  static constexpr bool asks_while_staging = false;
  static constexpr int64 staged_k = 128;
  static constexpr int64 turn_k = 128;

  // Of one or two steps, staged[steps][2][16][staged_k]. square_done() is called after each 16 rows x 32 k.
  template <class SquareDone>
  static void stage(const Rows (&steps)[2], int num_steps, int64 k0, int64 num_k, int64 k, uint16* staged,
                    const SquareDone& square_done) {
    uint16 copy[2][S::lanes];
    for (int64 i = 0; i < num_k; i += amx::kStep)
      for (int a = 0; a < 2; ++a)
        for (int step = 0; step < num_steps; ++step) {
          const Rows& w = steps[step];
          const int64 from = k0 + i;
          typename S::units square[S::lanes];
          if (w.num_rows[a] == amx::kRows && from + amx::kStep <= k) {
            const uint16* at = w.first[a] + from * w.stride;
#pragma unroll
            for (int u = 0; u < S::lanes; ++u, at += 2 * w.stride) square[u] = pairs_of(at, at + w.stride);
          } else {
#pragma clang loop unroll(disable)
            for (int u = 0; u < S::lanes; ++u)
              square[u] = load_columns<S>(w.first[a], w.stride, from / 2 + u, k, 0, w.num_rows[a], copy);
          }
          transpose<S::lanes>(square);
          uint16* const to = staged + (step * 2 + a) * amx::kRows * staged_k + i;
#pragma unroll
          for (int n = 0; n < S::lanes; ++n) store(to + n * staged_k, square[n]);
          square_done();
        }
  }
  static typename S::units pairs_of(const uint16* even, const uint16* odd) {
    using Words = Vec<uint16, S::lanes>;
    return __builtin_convertvector(load<Words>(even), typename S::units) |
           (__builtin_convertvector(load<Words>(odd), typename S::units) << 16);
  }
  // Of the columns of `num_steps` steps, of which w is the first.
  static Lines lines(const Rows& w, int64 k0, int64 num_k, int64 num_steps) {
    const bool is_dense = w.first[1] == w.first[0] + amx::kRows;  // 32 columns beside each other
    const int64 rows = align_up(num_k, 4), half = is_dense ? rows / 2 : 0;
    const auto* const first = w.first[0] + k0 * w.stride;
    const auto* const second = is_dense ? first + half * w.stride : w.first[1] + k0 * w.stride;
    return Lines::of_rows(first, second, num_steps * (is_dense ? 4 : 2) * amx::kRows, 2 * w.stride, rows - half);
  }
};

// Into how many parts numbers are cut, of X and of weights: 1, or 2, two bf16 of each (cpu/amx_split.hpp) or two bytes of X.
template <class W> inline constexpr int parts_of = 1;
template <class W> inline constexpr int weight_parts_of = 1;

// Where unit u of the high parts of a token tile begins, in dwords; low parts lie kTokenTileUnits further.
inline int64 high_unit(int64 u) { return (u / 16 * 2 * 16 + u % 16) * amx::kTokens; }

// What W multiplies by.
template <class W> inline constexpr amx::Dot dot_of = amx::Dot::bf16;
template <Layout layout>
inline constexpr amx::Dot dot_of<TileWeights<Simd<CpuIsa::amx_fp16, DType::fp16>, layout>> = amx::Dot::fp16;

// Token tiles that are multiplied together: their sums fill the tile registers.
template <class W> inline constexpr int pass_tiles = dot_of<W> == amx::Dot::int16 ? 1 : 3;

// Elements of K whose sums are scaled before they are added up, a multiple of 32; 0: sums are not scaled here. Its Rows have
//   read_scales   writes the row scales of `count` blocks from `first` on; no piece has more than kMaxBlocks of them
template <class W> inline constexpr int64 sum_block_of = 0;
template <class W> constexpr bool sums_blocks() { return sum_block_of<W> != 0; }

// Of C.
template <class W> using SumOf = typename Conditional<sums_blocks<W>(), float, ProductOf<dot_of<W>>>::type;

// Dwords of a token tile of k elements of K.
template <class W> inline int64 token_tile_dwords(int64 k) {
  int64 units = parts_of<W> * align_up(ceil_div(k, 2), 16);
  if constexpr (sums_blocks<W>()) units += ceil_div(k, sum_block_of<W>);
  return units * amx::kTokens;
}

// Local memory of amx_form.
template <class W, bool = sums_blocks<W>()> struct FormScratch {
  uint16 staged[(W::turn_k == kAllOfK ? 1 : 2) * 2 * amx::kRows * W::staged_k];  // two steps if rows take turns
};
template <class W> struct FormScratch<W, true> {
  uint16 staged[2 * amx::kRows * W::staged_k];
  BlockScratch<dot_of<W>> blocks;
};
constexpr int kSplitBytes = 2 * 2 * amx::kRows * amx::kStep;  // of the high, or low, parts of 32 rows and one step

// How often amx_form multiplies, at least.
template <class W> inline int64 multiplications(int num_tiles, int64 k) {
  return ceil_div(num_tiles, pass_tiles<W>) * ceil_div(k, amx::kStep);
}

// Whether rows of W take turns, see Turns.
template <class W> constexpr bool takes_turns() { return W::turn_k != kAllOfK; }

// The order in which steps [first, last), of 32 rows each, and parts of K are multiplied: `together` steps take turns, each
// with turn_k of K. Where turn_k is all of K that is one step after the other. `rows_of(step)` are a step's rows.
template <class W> struct Turns {
  int64 first, last, k, together;
  int64 step = first, from = 0;

  static Turns of(int64 first, int64 last, int64 k, int num_tiles) {
    return {first, last, k, takes_turns<W>() ? kMaxSums / num_tiles : 2};
  }
  int64 to() const { return from + W::turn_k < k ? from + W::turn_k : k; }
  bool completes_step() const { return from + W::turn_k >= k; }
  int64 slot() const { return (step - first) % together; }
  int64 end() const { return step - slot() + together < last ? step - slot() + together : last; }  // of those that take turns

  // Goes on; false at the end.
  bool next() {
    if (step + 1 == end()) return next_part();
    ++step;
    return true;
  }
  // Likewise, to another part of K or to steps that have not had a turn yet.
  bool next_part() {
    if (completes_step()) step = end(), from = 0;
    else step -= slot(), from += W::turn_k;
    return step < last;
  }
  // What is asked for together: of one step, or of all from here to the end of the part.
  template <class RowsOf> Lines lines(const RowsOf& rows_of) const {
    if constexpr (takes_turns<W>()) return W::lines(rows_of(step), from, to() - from, end() - step);
    else return W::lines(rows_of(step), 0, k < kPieceK ? k : kPieceK);
  }
};

// What one call of amx_form multiplies.
template <class W> struct Turn {
  typename W::Rows rows;
  int64 from, to;  // part of K
  // Where rows take turns two steps are staged together: their columns share cache lines.
  typename W::Rows other = {};
  int num_staged = 1;  // now: these rows, or both; 0: these were staged as `other`

  template <class RowsOf> static Turn of(const Turns<W>& turns, const RowsOf& rows_of) {
    Turn turn{rows_of(turns.step), turns.from, turns.to()};
    if constexpr (takes_turns<W>()) {
      turn.num_staged = turns.slot() % 2 != 0 ? 0 : turns.step + 1 == turns.end() ? 1 : 2;
      if (turn.num_staged == 2) turn.other = rows_of(turns.step + 1);
    }
    return turn;
  }
};

// The weights that are asked for while others are multiplied: those of the next call of amx_form, or, where rows take
// turns, of the next part of K, `number` lines of each place per call.
struct SoonWeights {
  Lines lines;
  int64 number = 0;

  // `after` comes after the last of these turns, if anything.
  template <class W, class RowsOf, class RowsAfter>
  void plan(const Turns<W>& turns, const RowsOf& rows_of, const Turns<W>* after, const RowsAfter& rows_after) {
    if (takes_turns<W>() && turns.slot() != 0) return;
    Turns<W> ahead = turns;
    if (takes_turns<W>() ? ahead.next_part() : ahead.next()) lines = ahead.lines(rows_of);
    else if (after != nullptr) lines = after->lines(rows_after);
    else lines = {};
    number = ceil_div(lines.count(), turns.end() - turns.step);
  }
};

// C = W X^T, or C += W X^T if the turn's part of K does not begin at 0, see above.
template <class W, class Beside>
[[gnu::noinline]] void amx_form(const Turn<W>& turn, SoonWeights& soon, const uint32* x, int num_tiles, int64 k,
                                float* sums, FormScratch<W>& scratch, const Beside& beside) {
  const typename W::Rows& w = turn.rows;
  constexpr bool has_blocks = sums_blocks<W>();
  constexpr bool cuts_weights = weight_parts_of<W> == 2;
  static_assert(!cuts_weights || (!has_blocks && !W::in_place), "staged, and scaled elsewhere");
  uint16* staged = scratch.staged;
  const int64 tile_units = token_tile_dwords<W>(k);
  auto blocks = [&] {
    if constexpr (has_blocks) return SumBlocks<dot_of<W>>(scratch.blocks);
    else return Int<0>{};
  }();
  const bool in_place = W::in_place && w.num_rows[0] == amx::kRows && w.num_rows[1] == amx::kRows;
  const int passes = int(ceil_div(num_tiles, pass_tiles<W>));
  constexpr int parts = parts_of<W>;
  constexpr int64 most_scaled = has_blocks ? kMaxBlocks * sum_block_of<W> : kPieceK;
  const int64 most = in_place ? (most_scaled < kPieceK ? most_scaled : kPieceK) : W::staged_k / weight_parts_of<W>;
  static_assert(!takes_turns<W>() || W::turn_k == W::staged_k, "a part is one piece");
  static_assert(!has_blocks || W::staged_k <= most_scaled, "a piece's blocks have their scales in scratch");
  int64 first_block = 0, scaled_k = 0;  // blocks from the one up to the other have their scales in scratch
  Lines lines;
  int lines_per_row = 0, lines_per_step = 0;
  int64 piece_end = turn.from;
  for (int64 k0 = turn.from; k0 < turn.to;) {
    if constexpr (takes_turns<W>()) {
      piece_end = turn.to;
    } else if (k0 == piece_end) {  // from here on the next piece is asked for
      piece_end = k0 + kPieceK < k ? k0 + kPieceK : k;
      const int64 steps = ceil_div(piece_end - k0, amx::kStep);
      if (piece_end < k) lines = W::lines(w, piece_end, k - piece_end < kPieceK ? k - piece_end : kPieceK);
      else lines = soon.lines;
      const int64 staged_rows = W::asks_while_staging ? ceil_div(steps * amx::kStep, most) * 2 * amx::kRows : 0;
      lines_per_row = staged_rows == 0 ? 0 : int(ceil_div(lines.count() / 2, staged_rows));
      const int64 others = lines.count() - lines_per_row * staged_rows;
      lines_per_step = others > 0 ? int(ceil_div(others, steps * passes)) : 0;
    }
    const int64 num_k = piece_end - k0 < most ? piece_end - k0 : most;
    const int64 direct_k = in_place ? num_k / amx::kStep * amx::kStep : 0;
    const int64 staged_k = align_up(num_k - direct_k, amx::kStep);
    if constexpr (takes_turns<W>()) {
      Pace asking(turn.num_staged * soon.number, turn.num_staged * 2 * staged_k / amx::kStep);
      const auto square_done = [&] { asking.turn([&](int64) { soon.lines.fetch(1); }); };
      if (turn.num_staged == 0) staged += 2 * amx::kRows * W::staged_k;
      else W::stage({w, turn.other}, turn.num_staged, k0, staged_k, k, staged, square_done);
    } else if constexpr (W::asks_while_staging) {
      W::stage(w, k0, staged_k, k, staged, [&](int rows) { lines.fetch(rows * lines_per_row); });
    } else if (staged_k != 0) {
      W::stage(w, k0 + direct_k, staged_k, k, staged);
    }
    if constexpr (has_blocks)
      if (k0 + num_k > scaled_k) {
        blocks.finish();  // needs the scales of the blocks before
        first_block = k0 / sum_block_of<W>;
        const int64 last_block = ceil_div(k, sum_block_of<W>), count = last_block - first_block;
        w.read_scales(first_block, count < kMaxBlocks ? int(count) : kMaxBlocks, scratch.blocks.row_scales);
        scaled_k = (first_block + kMaxBlocks) * sum_block_of<W>;
      }
    const auto pass = [&](auto tiles, int t) {
      constexpr int tiles_at_once = decltype(tiles)::value;
      constexpr bool has_bytes = dot_of<W> == amx::Dot::int16;  // a token tile is two of bytes
      constexpr int num_x = has_bytes ? 2 : tiles_at_once;
      const int64 x_step = has_bytes ? amx::kTokenTileUnits : tile_units;
      const uint32* const tokens = x + t * tile_units + k0 * (parts * amx::kTokens / 2);
      float* const at = sums + t * 2 * amx::kTileFloats;
      const auto run = [&](const uint8* a0, const uint8* a1, int64 stride_bytes, int64 from, int64 steps) {
        const uint32* b = tokens + from * (parts * amx::kTokens / 2);
        for (int64 left = steps; left > 0; left -= kTogether) {  // short loops, whose ends branch prediction knows
          const int together = left < kTogether ? int(left) : kTogether;
#pragma clang loop unroll(disable)
          for (int step = 0; step < together; ++step) {
            amx::multiply<dot_of<W>, num_x>(a0, a1, stride_bytes, b, x_step);
            if constexpr (cuts_weights) {  // high times high was that; now high times low and low times high
              amx::multiply<dot_of<W>, num_x>(a0, a1, stride_bytes, b + amx::kTokenTileUnits, x_step);
              amx::multiply<dot_of<W>, num_x>(a0 + kSplitBytes, a1 + kSplitBytes, stride_bytes, b, x_step);
            }
            lines.fetch(lines_per_step);
            if constexpr (has_blocks) blocks.turn();
            beside();
            a0 += cuts_weights ? 2 * kSplitBytes : 2 * amx::kStep;
            a1 += cuts_weights ? 2 * kSplitBytes : 2 * amx::kStep;
            b += parts * amx::kTokenTileUnits;
          }
        }
      };
      // Elements [from, to) of these num_k: where they are, then those that are staged.
      const auto run_part = [&](int64 from, int64 to) {
        if constexpr (W::in_place)
          if (from < direct_k) {
            const int64 end = to < direct_k ? to : direct_k;
            run(W::row(w, 0, 0) + 2 * (k0 + from), W::row(w, 1, 0) + 2 * (k0 + from), W::row_bytes(w), from,
                (end - from) / amx::kStep);
            from = end;
          }
        constexpr int64 row = cuts_weights ? amx::kStep : W::staged_k;
        const auto* const copy = reinterpret_cast<const uint8*>(staged) + 2 * (from - direct_k);
        run(copy, copy + 2 * amx::kRows * row, 2 * row, from, ceil_div(to - from, amx::kStep));
      };
      if constexpr (has_blocks) {
        constexpr int64 block_k = sum_block_of<W>;
        const auto* const token_scales =
            reinterpret_cast<const float*>(x + (t + 1) * tile_units) - ceil_div(k, block_k) * amx::kTokens;
        for (int64 from = 0; from < num_k;) {
          const int64 block = (k0 + from) / block_k, block_end = (block + 1) * block_k - k0;
          const int64 end = block_end < num_k ? block_end : num_k;
          amx::zero_sums<num_x>();
          run_part(from, end);
          blocks.finish();
          amx::store_sums<num_x>(reinterpret_cast<float*>(scratch.blocks.products));
          blocks.begin(scratch.blocks.row_scales[block - first_block], token_scales + block * amx::kTokens, tile_units,
                       tiles_at_once, k0 + from == 0, at, block_k / amx::kStep);
          from = end;
        }
      } else {
        if (k0 == 0) amx::zero_sums<num_x>();
        else amx::load_sums<num_x>(at);
        run_part(0, num_k);
        amx::store_sums<num_x>(at);
      }
    };
    for (int t = 0, left = passes; left > 0; --left) {  // as even as possible: 3 + 2 and 2 + 2 rather than 3 + 1
      const int tiles = int(ceil_div(num_tiles - t, left));
      if constexpr (pass_tiles<W> == 1) {
        pass(Int<1>{}, t);
      } else {
        if (tiles == 3) pass(Int<3>{}, t);
        else if (tiles == 2) pass(Int<2>{}, t);
        else pass(Int<1>{}, t);
      }
      t += tiles;
    }
    k0 += num_k;
  }
  if constexpr (has_blocks) blocks.finish();
}

}  // namespace jitmoe::cpu
