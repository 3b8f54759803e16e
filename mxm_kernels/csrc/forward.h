// Forward sweep of a tile: row and column statistics and the positives, in one reading.
//
// A strip of kStrip rows is cut into chunks of kChunk columns, which stay in the L2 cache for
// the two readings of a chunk: its maximum c, then exp(S - c), which rows and columns share. A
// row or column far below c would lose its sum to underflow; that is checked on the sums, and
// such a chunk is done again with an exponential for each side.

#pragma once

#include <algorithm>

#include "chunk.h"
#include "passes.h"
#include "positives.h"
#include "running.h"
#include "threads.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// The logits of S (negatives only) or of T, kNothing elsewhere.
template <bool kStudent>
inline Floats logits(const Chunk& chunk, int i, int j) {
  const Floats product = load((kStudent ? chunk.student : chunk.teacher) + chunk.at(i, j));
  const Floats value = logit(product, kStudent ? chunk.scale : chunk.teacher_scale);
  const Ints absent = kStudent ? chunk.hidden(i, j) : chunk.outside(j);
  return absent ? fill(kNothing) : value;
}

// The maximum of each row and column of S (negatives only) or of T.
template <bool kStudent>
void find_maxima(const Chunk& chunk, float* rows, float* cols) {
  std::fill_n(cols, padded(chunk.cols), kNothing);
  for (int i = 0; i < chunk.rows; ++i) {
    Floats top = fill(kNothing);
    for (int j = 0; j < chunk.cols; j += kLanes) {
      const Floats value = logits<kStudent>(chunk, i, j);
      top = maximum(top, value);
      store(cols + j, maximum(load(cols + j), value));
    }
    rows[i] = largest(top);
  }
}

enum class Weighed { kNot, kStudent, kTeacher };  // by which products

// The sums of S, or of T with its weights, relative to the maximum of each row and column.
template <Weighed kBy>
void add_apart(const Chunk& chunk, Sums<kStrip>& rows, Sums<kChunk>& cols) {
  constexpr bool kStudent = kBy == Weighed::kNot;
  find_maxima<kStudent>(chunk, rows.top, cols.top);
  cols.clear(padded(chunk.cols));
  for (int i = 0; i < chunk.rows; ++i) {
    Floats total{}, weighted{};
    for (int j = 0; j < chunk.cols; j += kLanes) {
      const Floats value = logits<kStudent>(chunk, i, j);
      const Ints absent = value == kNothing;
      const Floats row = absent ? Floats{} : exponential(value - rows.top[i]);
      const Floats col = absent ? Floats{} : exponential(value - load(cols.top + j));
      total += row;
      store(cols.total + j, load(cols.total + j) + col);
      if (kStudent) continue;
      const float* const weights = kBy == Weighed::kTeacher ? chunk.teacher : chunk.student;
      const Floats product = load(weights + chunk.at(i, j));
      const Floats inside = chunk.outside(j) ? Floats{} : product;
      weighted += row * inside;
      store(cols.weighted + j, load(cols.weighted + j) + col * inside);
    }
    rows.total[i] = sum(total);
    rows.weighted[i] = sum(weighted);
  }
}

template <bool kTeacher>
void sum_chunk(const Chunk& chunk, ChunkSums& sums) {
  const std::int64_t width = padded(chunk.cols);
  const References top = references<kTeacher>(chunk);
  sums.S_cols.clear(width);
  std::fill_n(sums.S_cols.top, width, top.S);
  std::fill_n(sums.S_rows.top, kStrip, top.S);
  if (kTeacher) {
    sums.T_cols.clear(width);
    std::fill_n(sums.T_cols.top, width, top.T);
    std::fill_n(sums.T_rows.top, kStrip, top.T);
  }
  add_chunk<kTeacher>(chunk, top, sums);
  if (kTeacher && !(sums.T_rows.ample(chunk.rows) && sums.T_cols.ample(chunk.cols))) {
    add_apart<Weighed::kStudent>(chunk, sums.T_rows, sums.T_cols);
  }
  if (!(sums.S_rows.ample(chunk.rows) && sums.S_cols.ample(chunk.cols))) {
    add_apart<Weighed::kNot>(chunk, sums.S_rows, sums.S_cols);
  }
}

// What diagnostics want besides, from the same products: apart from the sums above, which
// stay what they are without diagnostics.
inline void diagnose(const Chunk& chunk, std::int64_t row, std::int64_t col, ChunkSums& sums,
                     Statistics& rows, Statistics& cols) {
  find_maxima<true>(chunk, sums.S_rows.top, sums.S_cols.top);
  raise(rows.hardest, row, sums.S_rows.top, chunk.rows);
  raise(cols.hardest, col, sums.S_cols.top, chunk.cols);
  if (chunk.teacher == nullptr) return;
  add_apart<Weighed::kTeacher>(chunk, sums.T_rows, sums.T_cols);
  merge(rows.own, row, sums.T_rows, chunk.rows);
  merge(cols.own, col, sums.T_cols, chunk.cols);
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
          p.teacher_scale};
}

inline void sweep_strip(Forward& pass, const Tile& tile, int first, int rows, Statistics& cols) {
  ChunkSums sums;
  for (std::int64_t j = 0; j < tile.cols; j += kChunk) {
    const Chunk chunk = cut(pass.problem, tile, first, rows, j);
    if (tile.teacher != nullptr) {
      sum_chunk<true>(chunk, sums);
    } else {
      sum_chunk<false>(chunk, sums);
    }
    merge(pass.rows.S, tile.row + first, sums.S_rows, rows);
    merge(cols.S, j, sums.S_cols, chunk.cols);
    if (tile.teacher != nullptr) {
      merge(pass.rows.T, tile.row + first, sums.T_rows, rows);
      merge(cols.T, j, sums.T_cols, chunk.cols);
    }
    if (pass.diagnostics) diagnose(chunk, tile.row + first, j, sums, pass.rows, cols);
  }
}

inline void gather_positives(const Problem& p, float* positives, const Tile& tile, int first,
                             int rows) {
  for (int i = first; i < first + rows; ++i) {
    each_positive(p, tile, i, [&](std::int64_t slot, std::int64_t place) {
      positives[slot] = tile.student[place] * p.scale;
    });
  }
}

// The column statistics of [from, to) of a tile: every thread's, in the order of the threads.
inline void merge_columns(Forward& pass, const Tile& tile, int team, std::int64_t from,
                          std::int64_t to) {
  for (int thread = 0; thread < team; ++thread) {
    const Statistics& partial = pass.partials[thread];
    if (pass.diagnostics) {
      raise(pass.cols.hardest, tile.col + from, partial.hardest.data() + from, to - from);
    }
    for (Running Statistics::*part : {&Statistics::S, &Statistics::T, &Statistics::own}) {
      const Running& sums = partial.*part;
      if (sums.top.empty()) continue;
      const float* const weighted = sums.weighted.empty() ? nullptr : sums.weighted.data() + from;
      merge(pass.cols.*part, tile.col + from, sums.top.data() + from, sums.total.data() + from,
            weighted, to - from);
    }
  }
}

// Deals the strips of a tile out to threads, then its columns: begin(thread) once, strip(thread,
// first row, rows) for each, and when all are done columns(team, from, to).
template <class Begin, class Strip, class Columns>
inline void deal(int threads, const Tile& tile, Begin begin, Strip strip, Columns columns) {
  const std::int64_t strips = (tile.rows + kStrip - 1) / kStrip;
#pragma omp parallel num_threads(threads)
  {
    const int team = team_size(), thread = thread_number();
    begin(thread);
    for (std::int64_t k = strips * thread / team; k < strips * (thread + 1) / team; ++k) {
      const int first = static_cast<int>(k * kStrip);
      strip(thread, first, static_cast<int>(std::min<std::int64_t>(kStrip, tile.rows - first)));
    }
#pragma omp barrier
    columns(team, tile.cols * thread / team, tile.cols * (thread + 1) / team);
  }
}

inline void forward_tile(Forward& pass, const Tile& tile) {
  deal(
      pass.problem.threads, tile, [&](int thread) { pass.partials[thread].clear(tile.cols); },
      [&](int thread, int first, int rows) {
        sweep_strip(pass, tile, first, rows, pass.partials[thread]);
        gather_positives(pass.problem, pass.positives, tile, first, rows);
      },
      [&](int team, std::int64_t from, std::int64_t to) {
        merge_columns(pass, tile, team, from, to);
      });
}

}  // namespace MXM_LEVEL
}  // namespace mxm
