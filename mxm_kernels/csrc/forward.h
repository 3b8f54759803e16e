// Forward sweep of a tile: row and column statistics and the positives, in one reading.
//
// A strip of kStrip rows is cut into chunks of kChunk columns, which stay in the L2 cache for
// the two readings of a chunk: its maximum c, then exp(S - c), which rows and columns share. A
// row or column far below c would lose its sum to underflow; that is checked on the sums, and
// such a chunk is done again with an exponential for each side.

#pragma once

#include <algorithm>

#include "chunk.h"
#include "keep.h"
#include "passes.h"
#include "positives.h"
#include "running.h"
#include "threads.h"
#include "told_chunk.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

enum class Of { kNegatives, kRemoved, kTargets };  // S over both, or T

// Logits, kNothing where the row, or the column, has none.
struct Logits {
  Floats row;
  Floats cols;
};

template <Of kOf>
inline Logits plain_logits(const Chunk& chunk, int i, int j) {
  constexpr bool kStudent = kOf == Of::kNegatives;
  const Floats product = load((kStudent ? chunk.student : chunk.teacher) + chunk.at(i, j));
  const Floats value = logit(product, kStudent ? chunk.scale : chunk.teacher_scale);
  const Ints absent = kStudent ? chunk.hidden(i, j) : chunk.outside(j);
  const Floats present = absent ? fill(kNothing) : value;
  return {present, present};
}

template <Of kOf>
inline Logits told_logits(const Chunk& chunk, int i, int j) {
  const Floats nothing = fill(kNothing);
  const Ints outside = chunk.outside(j);
  if (kOf == Of::kTargets) {
    const Floats present = outside ? nothing : teacher_logits(chunk, i, j);
    return {present, present};
  }
  const Pairs pair = pairs(chunk, i, j, outside);
  if (kOf == Of::kRemoved) {
    return {pair.out_row ? pair.S : nothing, pair.out_cols ? pair.S : nothing};
  }
  return {pair.row ? pair.S : nothing, pair.cols ? pair.S : nothing};
}

template <Of kOf, bool kTold>
inline Logits logits(const Chunk& chunk, int i, int j) {
  return kTold ? told_logits<kOf>(chunk, i, j) : plain_logits<kOf>(chunk, i, j);
}

// The maximum of each row and column.
template <Of kOf, bool kTold>
void find_maxima(const Chunk& chunk, float* rows, float* cols) {
  std::fill_n(cols, padded(chunk.cols), kNothing);
  for (int i = 0; i < chunk.rows; ++i) {
    Floats top = fill(kNothing);
    for (int j = 0; j < chunk.cols; j += kLanes) {
      const Logits value = logits<kOf, kTold>(chunk, i, j);
      top = maximum(top, value.row);
      store(cols + j, maximum(load(cols + j), value.cols));
    }
    rows[i] = largest(top);
  }
}

enum class Weighed { kNot, kStudent, kTeacher };

// What T is weighted by: products, or with rules logits.
template <Weighed kBy, bool kTold>
inline Floats weights(const Chunk& chunk, int i, int j) {
  constexpr bool kTeacher = kBy == Weighed::kTeacher;
  const Floats product = load((kTeacher ? chunk.teacher : chunk.student) + chunk.at(i, j));
  if (!kTold) return product;
  return kTeacher ? teacher_logits(chunk, i, j)
                  : logit(product, chunk.scale) + offsets(chunk.row_rules, i, chunk.col_rules, j);
}

// The sums of S, or of T with its weights, relative to the maximum of each row and column.
template <Of kOf, Weighed kBy, bool kTold>
void add_apart(const Chunk& chunk, Sums<kStrip>& rows, Sums<kChunk>& cols) {
  find_maxima<kOf, kTold>(chunk, rows.top, cols.top);
  cols.clear(padded(chunk.cols));
  for (int i = 0; i < chunk.rows; ++i) {
    Floats total{}, weighted{};
    for (int j = 0; j < chunk.cols; j += kLanes) {
      const Logits value = logits<kOf, kTold>(chunk, i, j);
      const Floats row =
          value.row == kNothing ? Floats{} : exponential(value.row - rows.top[i]);
      const Floats col =
          value.cols == kNothing ? Floats{} : exponential(value.cols - load(cols.top + j));
      total += row;
      store(cols.total + j, load(cols.total + j) + col);
      if (kBy == Weighed::kNot) continue;
      const Floats weight = weights<kBy, kTold>(chunk, i, j);
      const Floats inside = chunk.outside(j) ? Floats{} : weight;
      weighted += row * inside;
      store(cols.weighted + j, load(cols.weighted + j) + col * inside);
    }
    rows.total[i] = sum(total);
    rows.weighted[i] = sum(weighted);
  }
}

// Negatives' products, or with rules logits, 0 elsewhere.
template <bool kTold>
inline Logits negatives(const Chunk& chunk, int i, int j) {
  if (kTold) {
    const Pairs pair = pairs(chunk, i, j, chunk.outside(j));
    return {pair.row ? pair.S : Floats{}, pair.cols ? pair.S : Floats{}};
  }
  const Floats product = load(chunk.student + chunk.at(i, j));
  const Floats negative = chunk.hidden(i, j) ? Floats{} : product;
  return {negative, negative};
}

// Adds them to the sums of their rows, in double, and gives those of the columns.
template <bool kTold>
void add_products(const Chunk& chunk, double* rows, float* cols) {
  std::fill_n(cols, padded(chunk.cols), 0.0f);
  for (int i = 0; i < chunk.rows; ++i) {
    Floats total{};
    for (int j = 0; j < chunk.cols; j += kLanes) {
      const Logits negative = negatives<kTold>(chunk, i, j);
      total += negative.row;
      store(cols + j, load(cols + j) + negative.cols);
    }
    rows[i] += sum(total);
  }
}

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
  add_chunk<ToldRowSums, kToldRowsAtOnce, kTeacher>(chunk, top, sums);
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
  add_chunk<RowSums, kRowsAtOnce, kTeacher>(chunk, top, sums);
  if (kTeacher && !(sums.T_rows.ample(chunk.rows) && sums.T_cols.ample(chunk.cols))) {
    add_apart<Of::kTargets, Weighed::kStudent, false>(chunk, sums.T_rows, sums.T_cols);
  }
  if (!(sums.S_rows.ample(chunk.rows) && sums.S_cols.ample(chunk.cols))) {
    add_apart<Of::kNegatives, Weighed::kNot, false>(chunk, sums.S_rows, sums.S_cols);
  }
}

// Where the column sums of the chunks of one strip go: into a thread's running statistics,
struct RunningColumns {
  void add(std::int64_t j, const Chunk& chunk, const ChunkSums& sums) {
    merge(to.S, j, sums.S_cols, chunk.cols);
    if (chunk.soft) merge(to.T, j, sums.T_cols, chunk.cols);
    if (!to.removed.top.empty()) merge(to.removed, j, sums.removed_cols, chunk.cols);
    count(to.negatives, j, sums.negatives.cols, chunk.cols);
  }
  void add_products(std::int64_t j, const Chunk& chunk, const float* totals) {
    for (int k = 0; k < chunk.cols; ++k) to.neg_sum[j + k] += totals[k];
  }
  void diagnose(std::int64_t j, const Chunk& chunk, const ChunkSums& sums) {
    raise(to.hardest, j, sums.S_cols.top, chunk.cols);
    if (chunk.soft) merge(to.self_weighted, j, sums.T_cols, chunk.cols);
  }

  Statistics& to;
};

// or beside those of other strips.
struct StripColumns {
  void add(std::int64_t j, const Chunk& chunk, const ChunkSums& sums) {
    put(StripSums::kTop, j, sums.S_cols.top, chunk.cols);
    put(StripSums::kTotal, j, sums.S_cols.total, chunk.cols);
    if (chunk.soft) put(StripSums::kTeacherTop, j, sums.T_cols, chunk.cols);
    if (!chunk.removes) return;
    std::copy_n(sums.negatives.cols, chunk.cols, to.at(strip, StripSums::kNegatives) + j);
    if (!chunk.soft) return;
    put(StripSums::kRemovedTop, j, sums.removed_cols.top, chunk.cols);
    put(StripSums::kRemovedTotal, j, sums.removed_cols.total, chunk.cols);
  }
  void add_products(std::int64_t j, const Chunk& chunk, const float* totals) {
    put(StripSums::kNegSum, j, totals, chunk.cols);
  }
  void diagnose(std::int64_t j, const Chunk& chunk, const ChunkSums& sums) {
    put(StripSums::kHardest, j, sums.S_cols.top, chunk.cols);
    if (chunk.soft) put(StripSums::kSelfTop, j, sums.T_cols, chunk.cols);
  }

  void put(int part, std::int64_t j, const float* from, std::int64_t length) {
    std::copy_n(from, length, to.at(strip, part) + j);
  }
  void put(int part, std::int64_t j, const Sums<kChunk>& sums, std::int64_t length) {
    put(part, j, sums.top, length);
    put(part + 1, j, sums.total, length);
    put(part + 2, j, sums.weighted, length);
  }

  StripSums& to;
  std::int64_t strip;
};

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
          p.has_teacher,
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

inline void merge_removed(Forward& pass, StripSums& sums, std::int64_t strip, std::int64_t col,
                          std::int64_t from, std::int64_t to) {
  using Part = StripSums::Part;
  if (!pass.problem.removes) return;
  const float* const negatives = sums.at(strip, Part::kNegatives);
  for (std::int64_t j = from; j < to; ++j) pass.cols.negatives[col + j] += negatives[j];
  if (!pass.problem.has_teacher) return;
  merge(pass.cols.removed, col + from, sums.at(strip, Part::kRemovedTop) + from,
        sums.at(strip, Part::kRemovedTotal) + from, nullptr, to - from);
}

// The columns [from, to) of the tile: the sums of every strip, in the order of the strips.
inline void merge_strips(Forward& pass, const Tile& tile, std::int64_t strips, std::int64_t from,
                         std::int64_t to) {
  using Part = StripSums::Part;
  StripSums& sums = pass.strips;
  const std::int64_t first = tile.col + from, length = to - from;
  const auto part = [&](std::int64_t strip, int of) { return sums.at(strip, of) + from; };
  for (std::int64_t k = 0; k < strips; ++k) {
    merge(pass.cols.S, first, part(k, Part::kTop), part(k, Part::kTotal), nullptr, length);
    if (pass.neg_sum) {
      const float* const totals = part(k, Part::kNegSum);
      for (std::int64_t j = 0; j < length; ++j) pass.cols.neg_sum[first + j] += totals[j];
    }
    if (pass.problem.has_teacher) {
      merge(pass.cols.T, first, part(k, Part::kTeacherTop), part(k, Part::kTeacherTotal),
            part(k, Part::kWeighted), length);
    }
    merge_removed(pass, sums, k, tile.col, from, to);
    if (!pass.diagnostics) continue;
    raise(pass.cols.hardest, first, part(k, Part::kHardest), length);
    if (!pass.problem.has_teacher) continue;
    merge(pass.cols.self_weighted, first, part(k, Part::kSelfTop), part(k, Part::kSelfTotal),
          part(k, Part::kSelfWeighted), length);
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
                    : pass.problem.has_teacher ? StripSums::kHardest
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
