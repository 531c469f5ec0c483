// SPDX-License-Identifier: MIT
// The walk over tiles: a fixed grid of work-groups goes through tiles whose number only the device knows.
//
// A row block is {expert, first sorted pair, pairs, 0}: at most block_rows rows of one expert (kernel/route_group.hpp).
// Tiles are row blocks x column tiles. Tile ids run through panels of kPanelBlocks row blocks, block index fastest: the
// work-groups that run at the same time share few weight columns (one column tile per expert of the panel) and few
// token rows, so both stay in the last-level cache. Who takes which tile: scheduler/walk.hpp.
#pragma once

#include <jitmoe/scheduler/walk.hpp>

namespace jitmoe::scheduler {

constexpr int32 kPanelBlocks = 8;  // row blocks; a guess: 8 x 128 rows x 14 KiB (H = 7168) is about 14 MiB

struct Tile {
  int32 expert;
  int32 first;   // sorted pair of row 0
  int32 count;   // rows, >= 1
  int32 column;  // column tile
};

// Calls body(tile) for each tile of the work-group; the same for all its work-items.
template <class Walk, class Body>
inline void for_each_tile(const int32* blocks, int32 num_blocks, int32 num_column_tiles, Walk& walk, const Body& body) {
  const int32 num_tiles = num_blocks * num_column_tiles;  // the plan keeps it below 2^31
  const int32 panel_tiles = kPanelBlocks * num_column_tiles;
  walk.for_each(num_tiles, [&](int32 id) {
    const int32 panel = id / panel_tiles, in_panel = id % panel_tiles;
    const int32 left = num_blocks - panel * kPanelBlocks;
    const int32 panel_blocks = left < kPanelBlocks ? left : kPanelBlocks;
    const int32* block = blocks + 4 * int64(panel * kPanelBlocks + in_panel % panel_blocks);
    body(Tile{block[0], block[1], block[2], in_panel / panel_blocks});
  });
}

}  // namespace jitmoe::scheduler
