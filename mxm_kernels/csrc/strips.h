// Strips of 32 rows of S and of T, multiplied with columns that are packed for the matrix unit.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "fused.h"
#include "passes.h"

namespace mxm {
namespace MXM_LEVEL {
namespace {

// Columns at hand, whose packed features stay in the L2 cache: in backward three matrices and
// their part of dy, for which 512 columns take a quarter more time than 256.
constexpr int kForwardColumns = kChunk;
constexpr int kBackwardColumns = 256;
constexpr int kColumns = kForwardColumns;
constexpr int kRowBlock = 1024;            // rows of dS held at once
constexpr int kStripStride = kColumns + 16;  // a multiple of 4 KiB would share cache sets

// The features of one pair, student or teacher, and the packed columns at hand.
struct Pair {
  Pair(const Half* x, const Half* y, std::int64_t rows, std::int64_t cols, std::int64_t D)
      : x{x, x == nullptr ? 0 : rows, D},
        y{y, y == nullptr ? 0 : cols, D},
        packed(this->x.rows == 0 ? 0 : kColumns * this->x.depth() * kTileDepth) {}

  bool exists() const { return x.rows > 0; }

  // This thread's share of the columns col .. col + cols as the right factor.
  void pack(std::int64_t col, std::int64_t cols) const {
    if (!exists()) return;
    const Matrix part = y.part(col, cols);
    const std::int64_t panels = round_up(cols, kBlock) / kTileRows;
#pragma omp for schedule(static) nowait
    for (std::int64_t p = 0; p < panels; ++p) {
      pack_transposed(part, p, packed.get() + p * x.depth() * kTile);
    }
  }

  Matrix x;
  Matrix y;
  Buffer<Half> packed;
};

// What one thread works in: 32 rows of S and of T, and rows that need padding.
struct Strip {
  explicit Strip(std::int64_t depth)
      : S(kBlock * kStripStride), T(kBlock * kStripStride), rows(2 * depth * kTile) {}

  Buffer<float> S;
  Buffer<float> T;
  Buffer<Half> rows;
};

// 32 rows of m from `first` on, in place where they can be read as they are.
inline Left left_rows(const Matrix& m, std::int64_t first, Half* scratch) {
  const std::int64_t bytes = m.cols * sizeof(Half);
  if (m.cols % kTileDepth == 0 && first + kBlock <= m.rows) {
    const Half* const rows = m.data + first * m.cols;
    return {rows, rows + kTileRows * m.cols, bytes, kTileDepth};
  }
  const std::int64_t half = m.depth() * kTile;
  for (std::int64_t i = 0; i < kBlock; ++i) {
    for (std::int64_t k = 0; k < m.depth(); ++k) {
      _mm512_store_si512(scratch + i / 16 * half + k * kTile + i % 16 * 32,
                         m.load(first + i, k * kTileDepth));
    }
  }
  return {scratch, scratch + half, 64, kTile};
}

// Products of rows `first` .. + 32 with the packed columns.
inline void multiply_strip(const Pair& pair, std::int64_t first, std::int64_t cols,
                           Half* scratch, float* to) {
  const std::int64_t depth = pair.x.depth();
  const Left left = left_rows(pair.x, first, scratch);
  for (std::int64_t j = 0; j < cols; j += kBlock) {
    multiply_block(left, pair.packed.get() + j * depth * kTileDepth, depth, to + j,
                   kStripStride, false);
  }
}

inline Tile multiply_both(const Pair& student, const Pair& teacher, std::int64_t row,
                          std::int64_t rows, std::int64_t col, std::int64_t cols,
                          const Strip& strip) {
  multiply_strip(student, row, cols, strip.rows.get(), strip.S.get());
  if (teacher.exists()) multiply_strip(teacher, row, cols, strip.rows.get(), strip.T.get());
  float* const S = strip.S.get();
  return {S,   teacher.exists() ? strip.T.get() : nullptr, kStripStride, row, col, rows, cols, S,
          kStripStride};
}

inline std::int64_t deepest(const Pair& student, const Pair& teacher) {
  return std::max(student.x.depth(), teacher.x.depth());
}

inline Pair student_of(const Features& f, const Problem& p) {
  return {f.x, f.y, p.rows, p.cols, f.D};
}

inline Pair teacher_of(const Features& f, const Problem& p) {
  return {f.teacher_x, f.teacher_y, p.rows, p.cols, f.E};
}

}  // namespace
}  // namespace MXM_LEVEL
}  // namespace mxm
