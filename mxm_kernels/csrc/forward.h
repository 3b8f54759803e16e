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

// Adds the products of the negatives to the sums of their rows, in double, and gives those of the
// columns.
inline void add_products(const Chunk& chunk, double* rows, float* cols) {
  std::fill_n(cols, padded(chunk.cols), 0.0f);
  for (int i = 0; i < chunk.rows; ++i) {
    Floats total{};
    for (int j = 0; j < chunk.cols; j += kLanes) {
      const Floats product = load(chunk.student + chunk.at(i, j));
      const Floats negative = chunk.hidden(i, j) ? Floats{} : product;
      total += negative;
      store(cols + j, load(cols + j) + negative);
    }
    rows[i] += sum(total);
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

// Where the column sums of the chunks of one strip go: into a thread's running statistics,
struct RunningColumns {
  void add(std::int64_t j, const Chunk& chunk, const ChunkSums& sums) {
    merge(to.S, j, sums.S_cols, chunk.cols);
    if (chunk.teacher != nullptr) merge(to.T, j, sums.T_cols, chunk.cols);
  }
  void add_products(std::int64_t j, const Chunk& chunk, const float* totals) {
    for (int k = 0; k < chunk.cols; ++k) to.neg_sum[j + k] += totals[k];
  }
  void diagnose(std::int64_t j, const Chunk& chunk, const ChunkSums& sums) {
    raise(to.hardest, j, sums.S_cols.top, chunk.cols);
    if (chunk.teacher != nullptr) merge(to.self_weighted, j, sums.T_cols, chunk.cols);
  }

  Statistics& to;
};

// or beside those of other strips.
struct StripColumns {
  void add(std::int64_t j, const Chunk& chunk, const ChunkSums& sums) {
    put(StripSums::kTop, j, sums.S_cols.top, chunk.cols);
    put(StripSums::kTotal, j, sums.S_cols.total, chunk.cols);
    if (chunk.teacher != nullptr) put(StripSums::kTeacherTop, j, sums.T_cols, chunk.cols);
  }
  void add_products(std::int64_t j, const Chunk& chunk, const float* totals) {
    put(StripSums::kNegSum, j, totals, chunk.cols);
  }
  void diagnose(std::int64_t j, const Chunk& chunk, const ChunkSums& sums) {
    put(StripSums::kHardest, j, sums.S_cols.top, chunk.cols);
    if (chunk.teacher != nullptr) put(StripSums::kSelfTop, j, sums.T_cols, chunk.cols);
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
template <class Columns>
void diagnose(const Chunk& chunk, std::int64_t row, std::int64_t j, ChunkSums& sums,
              Statistics& rows, Columns& cols) {
  find_maxima<true>(chunk, sums.S_rows.top, sums.S_cols.top);
  raise(rows.hardest, row, sums.S_rows.top, chunk.rows);
  if (chunk.teacher != nullptr) {
    add_apart<Weighed::kTeacher>(chunk, sums.T_rows, sums.T_cols);
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
          p.teacher_scale};
}

template <class Columns>
void sweep_strip(Forward& pass, const Tile& tile, int first, int rows, Columns cols) {
  ChunkSums sums;
  for (std::int64_t j = 0; j < tile.cols; j += kChunk) {
    const Chunk chunk = cut(pass.problem, tile, first, rows, j);
    if (tile.teacher != nullptr) {
      sum_chunk<true>(chunk, sums);
    } else {
      sum_chunk<false>(chunk, sums);
    }
    const std::int64_t row = tile.row + first;
    merge(pass.rows.S, row, sums.S_rows, rows);
    if (tile.teacher != nullptr) merge(pass.rows.T, row, sums.T_rows, rows);
    cols.add(j, chunk, sums);
    if (pass.neg_sum) {
      add_products(chunk, pass.rows.neg_sum.data() + row, sums.S_cols.weighted);
      cols.add_products(j, chunk, sums.S_cols.weighted);
    }
    if (pass.diagnostics) diagnose(chunk, row, j, sums, pass.rows, cols);
    for (const bool student : {true, false}) {
      const Keep& keep = student ? pass.student : pass.teacher;
      if (keep.to == nullptr) continue;
      keep_chunk(keep, chunk, student ? chunk.student : chunk.teacher, row, tile.col + j,
                 pass.problem.cols);
    }
  }
}

inline void gather_positives(const Problem& p, float* positives, const Tile& tile, int first,
                             int rows, float* teacher_positives = nullptr) {
  for (int i = first; i < first + rows; ++i) {
    each_positive(p, tile, i, [&](std::int64_t slot, std::int64_t j) {
      positives[slot] = tile.student[i * tile.stride + j] * p.scale;
      if (teacher_positives != nullptr) {
        teacher_positives[slot] = tile.teacher[i * tile.stride + j] * p.teacher_scale;
      }
    });
  }
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
    if (tile.teacher != nullptr) {
      merge(pass.cols.T, first, part(k, Part::kTeacherTop), part(k, Part::kTeacherTotal),
            part(k, Part::kWeighted), length);
    }
    if (!pass.diagnostics) continue;
    raise(pass.cols.hardest, first, part(k, Part::kHardest), length);
    if (tile.teacher == nullptr) continue;
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
  const int parts = pass.diagnostics           ? StripSums::kParts
                    : pass.problem.has_teacher ? StripSums::kHardest
                                               : StripSums::kTeacherTop;
  pass.strips.resize((tile.rows + kStrip - 1) / kStrip, tile.cols, parts);
  deal(
      pass.problem.threads, tile,
      [&](std::int64_t strip, int first, int rows) {
        sweep_strip(pass, tile, first, rows, StripColumns{pass.strips, strip});
        gather_positives(pass.problem, pass.positives, tile, first, rows, pass.teacher_positives);
      },
      [&](std::int64_t strips, std::int64_t from, std::int64_t to) {
        merge_strips(pass, tile, strips, from, to);
      });
}

}  // namespace MXM_LEVEL
}  // namespace mxm
