// Products of packed bfloat16 tiles on the matrix unit, AMX.

#pragma once

#include "bfloat16.h"

namespace mxm {
namespace MXM_LEVEL {

// Gives this thread's tile registers their shapes, all 16 rows of 64 bytes, for a scope.
class Unit {
 public:
  Unit() {
    alignas(64) struct {
      std::uint8_t palette = 1, start = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    _tile_loadconfig(&shapes);
  }
  ~Unit() { _tile_release(); }
  Unit(const Unit&) = delete;
  Unit& operator=(const Unit&) = delete;
};

// C[32 x 32] = A B, or += with `add`: `right` are the tiles of 16 columns over `depth`
// tiles, those of the next 16 follow.
inline void multiply_block(const Left& left, const Half* right, std::int64_t depth, float* C,
                           std::int64_t stride, bool add) {
  const std::int64_t bytes = stride * sizeof(float);
  float* const below = C + kTileRows * stride;
  if (add) {
    _tile_loadd(0, C, bytes);
    _tile_loadd(1, C + kTileRows, bytes);
    _tile_loadd(2, below, bytes);
    _tile_loadd(3, below + kTileRows, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const Half* next = right + depth * kTile;
  for (std::int64_t k = 0; k < depth; ++k) {
    _tile_loadd(4, left.rows + k * left.step, left.row_bytes);
    _tile_loadd(6, right + k * kTile, 64);
    _tile_loadd(7, next + k * kTile, 64);
    _tile_loadd(5, left.more + k * left.step, left.row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, C, bytes);
  _tile_stored(1, C + kTileRows, bytes);
  _tile_stored(2, below, bytes);
  _tile_stored(3, below + kTileRows, bytes);
}

}  // namespace MXM_LEVEL
}  // namespace mxm
