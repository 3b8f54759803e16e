// The positives of a row that lie in a tile.

#pragma once

#include "passes.h"

namespace mxm {
namespace MXM_LEVEL {

// Calls f(slot, column of the tile) for every positive of row i that is in the tile.
template <class Function>
inline void each_positive(const Problem& p, const Tile& tile, std::int64_t i, Function f) {
  const std::int64_t row = tile.row + i;
  for (std::int64_t slot = p.image_offsets[row]; slot < p.image_offsets[row + 1]; ++slot) {
    const std::int64_t j = p.pair_texts[slot] - tile.col;
    if (j >= 0 && j < tile.cols) f(slot, j);
  }
}

}  // namespace MXM_LEVEL
}  // namespace mxm
