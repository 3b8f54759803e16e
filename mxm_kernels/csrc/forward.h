// Forward sweep of a tile: row and column statistics and the positives, in one reading.
//
// A strip of kStrip rows is cut into chunks of kChunk columns, which stay in the L2 cache for
// the two readings of a chunk: its maximum c, then exp(S - c), which rows and columns share. A
// row or column far below c would lose its sum to underflow; that is checked on the sums, and
// such a chunk is done again with an exponential for each side.

#pragma once

#include <algorithm>

#include "apart.h"
#include "chunk.h"
#include "column_sums.h"
#include "keep.h"
#include "passes.h"
#include "positives.h"
#include "running.h"
#include "threads.h"
#include "told_chunk.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// Sets the references, and clears the sums.
inline void begin(float top, Sums<kStrip>& rows, Sums<kChunk>& cols, std::int64_t width) {
  cols.clear(width);
  std::fill_n(cols.top, width, top);
  std::fill_n(rows.top, kStrip, top);
}

template <bool kTeacher>
void sum_told_chunk(const Chunk& chunk, ChunkSums& sums) {
  const std::int64_t width = padded(chunk.cols);
  const References top = told_references<kTeacher>(chunk);
  begin(top.S, sums.S_rows, sums.S_cols, width);
  std::fill_n(sums.negatives.cols, width, 0);
  if (kTeacher) {
    begin(top.T, sums.T_rows, sums.T_cols, width);
    begin(top.removed, sums.removed_rows, sums.removed_cols, width);
    std::fill_n(sums.removed.cols, width, 0);
  }
  add_chunk<ToldRowSums, kTeacher>(chunk, top, sums);
  if (!settle(sums.S_rows, sums.S_cols, sums.negatives, chunk)) {
    add_apart<Of::kNegatives, Weighed::kNot, true>(chunk, sums.S_rows, sums.S_cols);
  }
  if (!kTeacher) return;
  if (!(sums.T_rows.ample(chunk.rows) && sums.T_cols.ample(chunk.cols))) {
    add_apart<Of::kTargets, Weighed::kStudent, true>(chunk, sums.T_rows, sums.T_cols);
  }
  if (!settle(sums.removed_rows, sums.removed_cols, sums.removed, chunk)) {
    add_apart<Of::kRemoved, Weighed::kNot, true>(chunk, sums.removed_rows, sums.removed_cols);
  }
}

template <bool kTeacher>
void sum_chunk(const Chunk& chunk, ChunkSums& sums) {
  const std::int64_t width = padded(chunk.cols);
  const References top = references<kTeacher>(chunk);
  begin(top.S, sums.S_rows, sums.S_cols, width);
  if (kTeacher) begin(top.T, sums.T_rows, sums.T_cols, width);
  add_chunk<RowSums, kTeacher>(chunk, top, sums);
  if (kTeacher && !(sums.T_rows.ample(chunk.rows) && sums.T_cols.ample(chunk.cols))) {
    add_apart<Of::kTargets, Weighed::kStudent, false>(chunk, sums.T_rows, sums.T_cols);
  }
  if (!(sums.S_rows.ample(chunk.rows) && sums.S_cols.ample(chunk.cols))) {
    add_apart<Of::kNegatives, Weighed::kNot, false>(chunk, sums.S_rows, sums.S_cols);
  }
}

// What diagnostics want besides, from the same products: apart from the sums above, which
// stay what they are without diagnostics.
template <bool kTold, class Columns>
void diagnose(const Chunk& chunk, std::int64_t row, std::int64_t j, ChunkSums& sums,
              Statistics& rows, Columns& cols) {
  find_maxima<Of::kNegatives, kTold>(chunk, sums.S_rows.top, sums.S_cols.top);
  raise(rows.hardest, row, sums.S_rows.top, chunk.rows);
  if (chunk.soft) {
    add_apart<Of::kTargets, Weighed::kTeacher, kTold>(chunk, sums.T_rows, sums.T_cols);
    merge(rows.self_weighted, row, sums.T_rows, chunk.rows);
  }
  cols.diagnose(j, chunk, sums);
}

// `rows` rows of a tile from `first` on, its columns from j on.
inline Chunk cut(const Problem& p, const Tile& tile, int first, int rows, std::int64_t j) {
  const std::int64_t start = first * tile.stride + j;
  return {tile.student + start,
          tile.teacher ? tile.teacher + start : nullptr,
          tile.stride,
          rows,
          static_cast<int>(std::min<std::int64_t>(kChunk, tile.cols - j)),
          p.image_groups + tile.row + first,
          p.text_groups.data() + tile.col + j,
          p.scale,
          p.teacher_scale,
          p.has_soft,
          p.filters,
          p.removes,
          p.image_rules.from(tile.row + first),
          p.text_rules.from(tile.col + j)};
}

template <bool kTold>
inline void sum_any_chunk(const Chunk& chunk, ChunkSums& sums) {
  if (kTold) return chunk.soft ? sum_told_chunk<true>(chunk, sums) : sum_told_chunk<false>(chunk, sums);
  return chunk.soft ? sum_chunk<true>(chunk, sums) : sum_chunk<false>(chunk, sums);
}

template <bool kTold, class Columns>
void sweep_strip(Forward& pass, const Tile& tile, int first, int rows, Columns cols) {
  ChunkSums sums;
  for (std::int64_t j = 0; j < tile.cols; j += kChunk) {
    const Chunk chunk = cut(pass.problem, tile, first, rows, j);
    sum_any_chunk<kTold>(chunk, sums);
    const std::int64_t row = tile.row + first;
    merge(pass.rows.S, row, sums.S_rows, rows);
    if (chunk.soft) merge(pass.rows.T, row, sums.T_rows, rows);
    if (chunk.soft && chunk.removes) merge(pass.rows.removed, row, sums.removed_rows, rows);
    count(pass.rows.negatives, row, sums.negatives.rows, rows);
    cols.add(j, chunk, sums);
    if (pass.neg_sum) {
      add_products<kTold>(chunk, pass.rows.neg_sum.data() + row, sums.S_cols.weighted);
      cols.add_products(j, chunk, sums.S_cols.weighted);
    }
    if (pass.diagnostics) diagnose<kTold>(chunk, row, j, sums, pass.rows, cols);
    for (const bool student : {true, false}) {
      const Keep& keep = student ? pass.student : pass.teacher;
      if (keep.to == nullptr) continue;
      keep_chunk(keep, chunk, student ? chunk.student : chunk.teacher, row, tile.col + j,
                 pass.problem.cols);
    }
  }
}

template <class Columns>
inline void sweep_any_strip(Forward& pass, const Tile& tile, int first, int rows, Columns cols) {
  if (pass.problem.told) return sweep_strip<true>(pass, tile, first, rows, cols);
  return sweep_strip<false>(pass, tile, first, rows, cols);
}

inline void gather_positives(const Problem& p, float* positives, const Tile& tile, int first,
                             int rows, float* teacher_positives = nullptr) {
  for (int i = first; i < first + rows; ++i) {
    each_positive(p, tile, i, [&](std::int64_t slot, std::int64_t j) {
      const std::int64_t row = tile.row + i, col = tile.col + j;
      positives[slot] = tile.student[i * tile.stride + j] * p.scale;
      if (p.told) positives[slot] += p.offset(row, col);
      if (teacher_positives == nullptr) return;
      teacher_positives[slot] = tile.teacher[i * tile.stride + j] * p.teacher_scale;
      if (p.told) teacher_positives[slot] += p.teacher_offset(row, col);
    });
  }
}

// Deals the strips of a tile out to threads, then its columns: strip(number, first row, rows) for
// each, and when all are done columns(strips, from, to), a chunk at a time.
template <class Strip, class Columns>
inline void deal(int threads, const Tile& tile, Strip strip, Columns columns) {
  const std::int64_t strips = (tile.rows + kStrip - 1) / kStrip;
#pragma omp parallel num_threads(threads)
  {
    const int team = team_size(), thread = thread_number();
    for (std::int64_t k = strips * thread / team; k < strips * (thread + 1) / team; ++k) {
      const int first = static_cast<int>(k * kStrip);
      strip(k, first, static_cast<int>(std::min<std::int64_t>(kStrip, tile.rows - first)));
    }
    finish_streams();
#pragma omp barrier
    const std::int64_t last = tile.cols * (thread + 1) / team;
    for (std::int64_t j = tile.cols * thread / team; j < last; j += kChunk) {
      columns(strips, j, std::min<std::int64_t>(j + kChunk, last));
    }
  }
}

inline void forward_tile(Forward& pass, const Tile& tile) {
  const bool told = pass.problem.told;
  const int parts = told                       ? StripSums::kParts
                    : pass.diagnostics         ? StripSums::kNegatives
                    : pass.problem.has_soft ? StripSums::kHardest
                                               : StripSums::kTeacherTop;
  pass.strips.resize((tile.rows + kStrip - 1) / kStrip, tile.cols, parts);
  deal(
      pass.problem.threads, tile,
      [&](std::int64_t strip, int first, int rows) {
        sweep_any_strip(pass, tile, first, rows, StripColumns{pass.strips, strip});
        gather_positives(pass.problem, pass.positives, tile, first, rows, pass.teacher_positives);
      },
      [&](std::int64_t strips, std::int64_t from, std::int64_t to) {
        merge_strips(pass, tile, strips, from, to);
      });
}

}  // namespace MXM_LEVEL
}  // namespace mxm
