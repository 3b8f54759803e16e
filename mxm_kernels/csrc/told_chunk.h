// The sums of a chunk where there are rules: its references, and its sums relative to them.
//
// A pair that is removed for its row and for its column is summed apart, against a reference of its
// own: it may be far above the negatives. One that is removed for one of them alone has the
// negatives' reference. So an entry has one exponential.

#pragma once

#include <algorithm>
#include <cmath>

#include "chunk.h"
#include "told.h"

namespace mxm {
namespace MXM_LEVEL {

// One row and kLanes columns, as the rules have them.
struct Pairs {
  Floats S;        // logits with their offsets, 0 beyond the chunk
  Ints row, cols;  // negatives of the row, and of the columns
  Ints out_row, out_cols;  // removed for them

  Ints out_of_both() const { return out_row & out_cols; }
};

inline Pairs pairs(const Chunk& chunk, int i, int j, Ints outside) {
  const RuleRows &rows = chunk.row_rules, &cols = chunk.col_rules;
  const Floats S = logit(load(chunk.student + chunk.at(i, j)), chunk.scale) +
                   offsets(rows, i, cols, j);
  const Removed out = chunk.filters
                          ? removed(rows, i, cols, j, load(chunk.teacher + chunk.at(i, j)))
                          : removed(rows, i, cols, j);
  const Ints shown = ~((load(chunk.col_groups + j) == chunk.row_groups[i]) | outside);
  return {outside ? Floats{} : S, shown & ~out.row, shown & ~out.cols, shown & out.row,
          shown & out.cols};
}

inline Floats teacher_logits(const Chunk& chunk, int i, int j) {
  return logit(load(chunk.teacher + chunk.at(i, j)), chunk.teacher_scale) +
         teacher_offsets(chunk.row_rules, i, chunk.col_rules, j);
}

template <bool kTeacher>
References told_references(const Chunk& chunk) {
  const Floats nothing = fill(kNothing);
  Floats S = nothing, T = nothing, out = nothing;
  for (int i = 0; i < chunk.rows; ++i) {
    for (int j = 0; j < chunk.cols; j += kLanes) {
      const Ints outside = chunk.outside(j);
      const Pairs pair = pairs(chunk, i, j, outside);
      S = maximum((pair.row | pair.cols) ? pair.S : nothing, S);
      if (!kTeacher) continue;
      out = maximum(pair.out_of_both() ? pair.S : nothing, out);
      T = maximum(outside ? nothing : teacher_logits(chunk, i, j), T);
    }
  }
  const float top = largest(S), highest = std::max(top, largest(out));
  return {top, largest(T), highest, std::exp(top - highest)};
}

template <int kRows>
struct ToldRowSums : RowSums<kRows> {
  Floats removed[kRows] = {};
  Ints negatives_counted[kRows] = {};
  Ints removed_counted[kRows] = {};
};

template <int kRows, bool kTeacher, bool kPartial>
inline void add_vector(const Chunk& chunk, int i, int j, const References& top,
                       ToldRowSums<kRows>& rows, ChunkSums& sums) {
  const Ints outside = kPartial ? chunk.outside(j) : Ints{};
  Floats S_col = load(sums.S_cols.total + j);
  Ints negatives_col = load(sums.negatives.cols + j), out_col{};
  Floats T_col{}, weighted_col{}, removed_col{};
  if (kTeacher) {
    T_col = load(sums.T_cols.total + j);
    weighted_col = load(sums.T_cols.weighted + j);
    removed_col = load(sums.removed_cols.total + j);
    out_col = load(sums.removed.cols + j);
  }
  for (int r = 0; r < kRows; ++r) {
    const Pairs pair = pairs(chunk, i + r, j, outside);
    const Ints apart = kTeacher ? pair.out_of_both() : Ints{};
    const Floats e = exponential(pair.S - (apart ? fill(top.removed) : fill(top.S)));
    rows.S[r] += pair.row ? e : Floats{};
    S_col += pair.cols ? e : Floats{};
    rows.negatives_counted[r] -= pair.row;
    negatives_col -= pair.cols;
    if (!kTeacher) continue;
    const Floats out = apart ? e : e * top.share;
    rows.removed[r] += pair.out_row ? out : Floats{};
    removed_col += pair.out_cols ? out : Floats{};
    rows.removed_counted[r] -= pair.out_row;
    out_col -= pair.out_cols;
    Floats f = exponential(teacher_logits(chunk, i + r, j) - top.T);
    if (kPartial) f = outside ? Floats{} : f;
    rows.T[r] += f;
    rows.weighted[r] += f * pair.S;
    T_col += f;
    weighted_col += f * pair.S;
  }
  store(sums.S_cols.total + j, S_col);
  store(sums.negatives.cols + j, negatives_col);
  if (!kTeacher) return;
  store(sums.T_cols.total + j, T_col);
  store(sums.T_cols.weighted + j, weighted_col);
  store(sums.removed_cols.total + j, removed_col);
  store(sums.removed.cols + j, out_col);
}

template <int kRows, bool kTeacher>
inline void store_rows(const ToldRowSums<kRows>& rows, int i, ChunkSums& sums) {
  store_rows<kRows, kTeacher>(static_cast<const RowSums<kRows>&>(rows), i, sums);
  for (int r = 0; r < kRows; ++r) {
    sums.negatives.rows[i + r] = sum(rows.negatives_counted[r]);
    if (!kTeacher) continue;
    sums.removed_rows.total[i + r] = sum(rows.removed[r]);
    sums.removed.rows[i + r] = sum(rows.removed_counted[r]);
  }
}

// Whether the sums lost nothing. Those without a term lose their reference, which might be far above
// what the row has elsewhere.
template <int kLength>
bool settle(Sums<kLength>& sums, const std::int32_t* counts, std::int64_t length) {
  bool enough = true;
  for (std::int64_t k = 0; k < length; ++k) {
    const bool none = counts[k] == 0;
    sums.top[k] = none ? kNothing : sums.top[k];
    enough &= none | (sums.total[k] >= kLeastTotal);
  }
  return enough;
}

inline bool settle(Sums<kStrip>& rows, Sums<kChunk>& cols, const Counts& counts,
                   const Chunk& chunk) {
  const bool enough = settle(rows, counts.rows, chunk.rows);
  return settle(cols, counts.cols, chunk.cols) & enough;
}

}  // namespace MXM_LEVEL
}  // namespace mxm
