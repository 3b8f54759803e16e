// A chunk of a tile that stays in the L2 cache: its references, and its sums relative to them.

#pragma once

#include <algorithm>

#include "passes.h"
#include "told.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// Terms below exp(-87) vanish. Of a sum of at least 2^-80 and kChunk terms, that is less than
// kChunk * 2^-125 / 2^-80 = 2^-36 of it, far below rounding.
constexpr float kLeastTotal = 0x1p-80f;

constexpr int kRowsAtOnce = kLanes >= 16 ? 4 : 2;  // their row sums stay in registers

// Sums of one chunk, relative to a reference of each row and column; `weighted` by products.
template <int kLength>
struct alignas(64) Sums {
  float top[kLength];
  float total[kLength];
  float weighted[kLength];

  void clear(std::int64_t length) {
    std::fill_n(total, length, 0.0f);
    std::fill_n(weighted, length, 0.0f);
  }
  bool ample(std::int64_t length) const {
    bool enough = true;
    for (std::int64_t k = 0; k < length; ++k) enough &= total[k] >= kLeastTotal;
    return enough;  // false for NaN
  }
};

// How many pairs of each row and column were summed.
struct alignas(64) Counts {
  std::int32_t rows[kStrip];
  std::int32_t cols[kChunk];
};

struct Chunk {
  const float* student;
  const float* teacher;  // null without one
  std::int64_t stride;
  int rows;
  int cols;
  const std::int32_t* row_groups;
  const std::int32_t* col_groups;
  float scale;
  float teacher_scale;
  bool soft;     // whether T is summed
  bool filters;  // whether its products remove pairs
  bool removes;  // whether anything does
  RuleRows row_rules;
  RuleRows col_rules;

  std::int64_t at(int i, int j) const { return i * stride + j; }
  Ints outside(int j) const { return lane_numbers() >= cols - j; }
  // Lanes of row i that are positives or beyond the chunk.
  Ints hidden(int i, int j) const {
    return (load(col_groups + j) == row_groups[i]) | outside(j);
  }
};

// References of a chunk: the greatest negative of S and the greatest T; of what is removed for its
// row and for its column the greatest S, where it is above the other.
struct References {
  float S;
  float T;
  float removed = kNothing;
  float share = 0;  // exp(S - removed)
};

template <bool kTeacher>
References references(const Chunk& chunk) {
  const Floats nothing = fill(kNothing);
  const int whole = chunk.cols / kLanes * kLanes;
  Floats S = nothing, T = nothing;
  for (int i = 0; i < chunk.rows; ++i) {
    const float* const student = chunk.student + i * chunk.stride;
    const float* const teacher = kTeacher ? chunk.teacher + i * chunk.stride : nullptr;
    const Ints group = Ints{} + chunk.row_groups[i];
    for (int j = 0; j < whole; j += kLanes) {
      const Ints positive = load(chunk.col_groups + j) == group;
      S = maximum(positive ? nothing : load(student + j), S);
      if (kTeacher) T = maximum(load(teacher + j), T);
    }
    if (whole == chunk.cols) continue;
    S = maximum(chunk.hidden(i, whole) ? nothing : load(student + whole), S);
    if (kTeacher) T = maximum(chunk.outside(whole) ? nothing : load(teacher + whole), T);
  }
  const float top = largest(S);  // scaled only if it is a product: kNothing must stay as it is
  return {top > kNothing ? top * chunk.scale : kNothing, largest(T) * chunk.teacher_scale};
}

struct ChunkSums {
  Sums<kStrip> S_rows, T_rows, removed_rows;
  Sums<kChunk> S_cols, T_cols, removed_cols;
  Counts negatives, removed;  // with rules only
};

// Row sums on the way through a chunk, in registers.
template <int kRows>
struct RowSums {
  Floats S[kRows] = {};
  Floats T[kRows] = {};
  Floats weighted[kRows] = {};
};

// Columns j .. j + kLanes of rows i .. i + kRows, the last few of them absent if kPartial.
template <int kRows, bool kTeacher, bool kPartial>
inline void add_vector(const Chunk& chunk, int i, int j, const References& top,
                       RowSums<kRows>& rows, ChunkSums& sums) {
  const Ints groups = load(chunk.col_groups + j);
  const Ints outside = kPartial ? chunk.outside(j) : Ints{};
  Floats S_col = load(sums.S_cols.total + j);
  Floats T_col{}, weighted_col{};
  if (kTeacher) {
    T_col = load(sums.T_cols.total + j);
    weighted_col = load(sums.T_cols.weighted + j);
  }
  for (int r = 0; r < kRows; ++r) {
    Floats product = load(chunk.student + chunk.at(i + r, j));
    Ints hidden = groups == chunk.row_groups[i + r];
    if (kPartial) {
      product = outside ? Floats{} : product;
      hidden |= outside;
    }
    const Floats e = hidden ? Floats{} : exponential(logit(product, chunk.scale) - top.S);
    rows.S[r] += e;
    S_col += e;
    if (!kTeacher) continue;
    const Floats T = logit(load(chunk.teacher + chunk.at(i + r, j)), chunk.teacher_scale);
    Floats f = exponential(T - top.T);
    if (kPartial) f = outside ? Floats{} : f;
    rows.T[r] += f;
    rows.weighted[r] += f * product;
    T_col += f;
    weighted_col += f * product;
  }
  store(sums.S_cols.total + j, S_col);
  if (!kTeacher) return;
  store(sums.T_cols.total + j, T_col);
  store(sums.T_cols.weighted + j, weighted_col);
}

template <int kRows, bool kTeacher>
inline void store_rows(const RowSums<kRows>& rows, int i, ChunkSums& sums) {
  for (int r = 0; r < kRows; ++r) {
    sums.S_rows.total[i + r] = sum(rows.S[r]);
    if (!kTeacher) continue;
    sums.T_rows.total[i + r] = sum(rows.T[r]);
    sums.T_rows.weighted[i + r] = sum(rows.weighted[r]);
  }
}

// Sums of rows i .. i + kRows with the chunk's own references.
template <template <int> class Rows, int kRows, bool kTeacher>
inline void add_rows(const Chunk& chunk, int i, const References& top, ChunkSums& sums) {
  Rows<kRows> rows;
  int j = 0;
  for (; j + kLanes <= chunk.cols; j += kLanes) {
    add_vector<kRows, kTeacher, false>(chunk, i, j, top, rows, sums);
  }
  if (j < chunk.cols) add_vector<kRows, kTeacher, true>(chunk, i, j, top, rows, sums);
  store_rows<kRows, kTeacher>(rows, i, sums);
}

// `Rows` are RowSums, or ToldRowSums where there are rules.
template <template <int> class Rows, bool kTeacher>
inline void add_chunk(const Chunk& chunk, const References& top, ChunkSums& sums) {
  int i = 0;
  for (; i + kRowsAtOnce <= chunk.rows; i += kRowsAtOnce) {
    add_rows<Rows, kRowsAtOnce, kTeacher>(chunk, i, top, sums);
  }
  for (; i < chunk.rows; ++i) add_rows<Rows, 1, kTeacher>(chunk, i, top, sums);
}

}  // namespace MXM_LEVEL
}  // namespace mxm
