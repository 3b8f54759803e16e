// Where the sums of the columns go, and how those of the strips are merged.

#pragma once

#include <algorithm>

#include "chunk.h"
#include "passes.h"
#include "running.h"

namespace mxm {
namespace MXM_LEVEL {

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

inline void merge_removed(Forward& pass, StripSums& sums, std::int64_t strip, std::int64_t col,
                          std::int64_t from, std::int64_t to) {
  using Part = StripSums::Part;
  if (!pass.problem.removes) return;
  const float* const negatives = sums.at(strip, Part::kNegatives);
  for (std::int64_t j = from; j < to; ++j) pass.cols.negatives[col + j] += negatives[j];
  if (!pass.problem.has_soft) return;
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
    if (pass.problem.has_soft) {
      merge(pass.cols.T, first, part(k, Part::kTeacherTop), part(k, Part::kTeacherTotal),
            part(k, Part::kWeighted), length);
    }
    merge_removed(pass, sums, k, tile.col, from, to);
    if (!pass.diagnostics) continue;
    raise(pass.cols.hardest, first, part(k, Part::kHardest), length);
    if (!pass.problem.has_soft) continue;
    merge(pass.cols.self_weighted, first, part(k, Part::kSelfTop), part(k, Part::kSelfTotal),
          part(k, Part::kSelfWeighted), length);
  }
}

}  // namespace MXM_LEVEL
}  // namespace mxm
