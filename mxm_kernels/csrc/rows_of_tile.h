// Where backward reads a row of products.

#pragma once

#include "passes.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// The products of a row of the tile, as floats or from what is kept in fixed point.
struct FloatRow {
  FloatRow(const Fixed&, const float* products, const Tile& tile, std::int64_t i)
      : from(products + i * tile.stride) {}
  Floats operator()(std::int64_t j) const { return load(from + j); }

  const float* from;
};

struct FixedRow {
  FixedRow(const Fixed& kept, const float*, const Tile& tile, std::int64_t i)
      : from(kept.numbers + (tile.row + i) * kept.stride + tile.col),
        unit(kept.rows[tile.row + i]),
        units(kept.cols.data() + tile.col) {}
  Floats operator()(std::int64_t j) const { return widened(from + j) * (load(units + j) * unit); }
  float at(std::int64_t j) const { return from[j] * (units[j] * unit); }

  const std::int16_t* from;
  float unit;
  const float* units;
};

}  // namespace MXM_LEVEL
}  // namespace mxm
