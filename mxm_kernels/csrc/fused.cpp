// Compiled once for each unit that multiplies bfloat16, MXM_LEVEL its name.

#include "fused.h"

#include <algorithm>
#include <cmath>

#include MXM_UNIT
#include "backward.h"
#include "forward.h"
#include "rounding.h"
#include "strips.h"

namespace mxm {
namespace MXM_LEVEL {
namespace {

// The column statistics of [from, to) of a tile: every thread's, in the order of the threads.
inline void merge_columns(Forward& pass, const Tile& tile, int team, std::int64_t from,
                          std::int64_t to) {
  for (int thread = 0; thread < team; ++thread) {
    const Statistics& partial = pass.partials[thread];
    if (pass.diagnostics) {
      raise(pass.cols.hardest, tile.col + from, partial.hardest.data() + from, to - from);
    }
    for (std::int64_t j = from; pass.neg_sum && j < to; ++j) {
      pass.cols.neg_sum[tile.col + j] += partial.neg_sum[j];
    }
    for (std::int64_t j = from; pass.problem.removes && j < to; ++j) {
      pass.cols.negatives[tile.col + j] += partial.negatives[j];
    }
    for (Running Statistics::*part : {&Statistics::S, &Statistics::T, &Statistics::self_weighted,
                                      &Statistics::removed}) {
      const Running& sums = partial.*part;
      if (sums.top.empty()) continue;
      const float* const weighted = sums.weighted.empty() ? nullptr : sums.weighted.data() + from;
      merge(pass.cols.*part, tile.col + from, sums.top.data() + from, sums.total.data() + from,
            weighted, to - from);
    }
  }
}

void forward(Forward& pass, const Features& features, Interrupted interrupted) {
  const Problem& p = pass.problem;
  bool stop = false;  // written by the caller's thread, read behind the next barrier
  const Pair student = student_of(features, p), teacher = teacher_of(features, p);
  const std::int64_t strips = (p.rows + kStrip - 1) / kStrip;
#pragma omp parallel num_threads(p.threads)
  {
    [[maybe_unused]] const Unit unit;
    const Strip strip(deepest(student, teacher));
    const int team = team_size(), thread = thread_number();
    Statistics& partial = pass.partials[thread];
    for (std::int64_t col = 0; col < p.cols && !stop; col += kForwardColumns) {
      const std::int64_t cols = std::min<std::int64_t>(kForwardColumns, p.cols - col);
      student.pack(col, cols);
      teacher.pack(col, cols);
      partial.clear(cols);
#pragma omp barrier
      for (std::int64_t k = strips * thread / team; k < strips * (thread + 1) / team; ++k) {
        const std::int64_t row = k * kStrip, rows = std::min<std::int64_t>(kStrip, p.rows - row);
        const Tile tile = multiply_both(student, teacher, row, rows, col, cols, strip);
        sweep_any_strip(pass, tile, 0, static_cast<int>(rows), RunningColumns{partial});
        gather_positives(p, pass.positives, tile, 0, static_cast<int>(rows));
      }
#pragma omp barrier
      const Tile block{nullptr, nullptr, 0, 0, col, p.rows, cols};
      merge_columns(pass, block, team, cols * thread / team, cols * (thread + 1) / team);
      if (thread == 0) stop = interrupted();
#pragma omp barrier
    }
  }
}

// The gradient products. dx of a block of rows is summed over the columns; dy, transposed,
// over the whole plane.
struct Products {
  Products(const Pair& student, const FeatureGradients& gradients)
      : x(student.x),
        y(student.y),
        wide(round_up(x.cols, kBlock)),
        dx_stride(wide + 16),
        dy_stride(round_up(y.rows, kBlock) + 16),
        want_x(gradients.x != nullptr),
        want_y(gradients.y != nullptr),
        y_pairs(want_x ? kBackwardColumns * wide : 0),
        x_columns(want_y ? kRowBlock * wide : 0),
        dS(kRowBlock * kBackwardColumns),
        dx(want_x ? kRowBlock * dx_stride : 0),
        dy(want_y ? wide * dy_stride : 0) {}

  Matrix x;
  Matrix y;
  std::int64_t wide;       // D, padded
  std::int64_t dx_stride;  // neither is a multiple of 4 KiB
  std::int64_t dy_stride;  // of dy transposed
  bool want_x;
  bool want_y;
  Buffer<Half> y_pairs;    // right factor of dx = dS y
  Buffer<Half> x_columns;  // left factor of dy^T = x^T dS
  Buffer<Half> dS;         // right factor of the same
  Buffer<float> dx;        // (kRowBlock, dx_stride)
  Buffer<float> dy;        // (wide, dy_stride)
};

// dx of 32 rows += their dS times the columns at hand.
inline void add_to_dx(const Products& g, const Half* dS, std::int64_t width, std::int64_t row,
                      bool first) {
  const std::int64_t depth = width / kTileDepth;
  const Left left{dS, dS + depth * kTile, 64, kTile};
  for (std::int64_t d = 0; d < g.wide; d += kBlock) {
    multiply_block(left, g.y_pairs.get() + d * depth * kTileDepth, depth,
                   g.dx.get() + row * g.dx_stride + d, g.dx_stride, !first);
  }
}

// dy^T += x^T dS for the columns at hand; each thread its own part.
inline void add_to_dy(const Products& g, std::int64_t depth, std::int64_t col,
                      std::int64_t width, bool first) {
  const std::int64_t across = width / kBlock;
#pragma omp for schedule(static)
  for (std::int64_t k = 0; k < g.wide / kBlock * across; ++k) {
    const std::int64_t d = k / across, j = k % across;
    const Half* const rows = g.x_columns.get() + d * kBlock * kRowBlock;
    const Left left{rows, rows + depth * kTile, 64, kTile};
    multiply_block(left, g.dS.get() + j * 2 * depth * kTile, depth,
                   g.dy.get() + d * kBlock * g.dy_stride + col + j * kBlock, g.dy_stride, !first);
  }
}

// Rows of dy from its transpose, 16 x 16 at a time.
inline void store_dy(const Products& g, const Rescale& rescale, Half* to) {
#pragma omp for schedule(static)
  for (std::int64_t n = 0; n < g.y.rows; n += 16) {
    for (std::int64_t d = 0; d < g.x.cols; d += 16) {
      __m512i block[16];
      for (int k = 0; k < 16; ++k) block[k] = _mm512_loadu_si512(&g.dy.get()[(d + k) * g.dy_stride + n]);
      transpose(block);
      for (int k = 0; k < 16 && n + k < g.y.rows; ++k) {
        alignas(64) float row[16];
        _mm512_store_si512(row, block[k]);
        store_rounded(row, rescale, to + (n + k) * g.x.cols + d,
                      std::min<std::int64_t>(16, g.x.cols - d));
      }
    }
  }
}

// dS of one strip in float32, zero beyond its rows and columns; returns the sum of dS * S.
inline double sweep_gradient(Backward& pass, const Tile& tile, RowSweep sweep, std::int64_t width,
                             double* columns) {
  double total = 0;
  for (std::int64_t i = 0; i < tile.rows; ++i) {
    total += static_cast<double>(sweep(pass, tile, i)) * pass.problem.scale;
    add_sums(pass, tile, i);
    total += add_positives(pass, tile, i);
    if (pass.wants_offsets()) add_totals(pass, tile, i, columns + tile.col);
    std::fill_n(tile.dS + i * tile.dS_stride + tile.cols, width - tile.cols, 0.0f);
  }
  for (std::int64_t i = tile.rows; i < kBlock; ++i) {
    std::fill_n(tile.dS + i * tile.dS_stride, width, 0.0f);
  }
  return total;
}

// The tiles of dS and of both gradients in rows `row` .. + `rows`, called by every thread.
double sweep_rows(Backward& pass, const Pair& student, const Pair& teacher, const Products& g,
                  const Strip& strip, Half* rounded, double* columns, std::int64_t row,
                  std::int64_t rows, Interrupted interrupted, bool& stop) {
  const Problem& p = pass.problem;
  const RowSweep sweep = row_sweep(pass);
  const int team = team_size(), thread = thread_number();
  const std::int64_t strips = (rows + kBlock - 1) / kBlock;
  double total = 0;
  if (g.want_y) {
#pragma omp for schedule(static) nowait
    for (std::int64_t d = 0; d < g.wide / kBlock; ++d) {
      pack_columns(g.x.part(row, rows), d, strips, g.x_columns.get() + d * kBlock * kRowBlock);
    }
  }
  for (std::int64_t col = 0; col < p.cols && !stop; col += kBackwardColumns) {
    const std::int64_t cols = std::min<std::int64_t>(kBackwardColumns, p.cols - col);
    const std::int64_t width = round_up(cols, kBlock), depth = width / kTileDepth;
    student.pack(col, cols);
    teacher.pack(col, cols);
    if (g.want_x) {
#pragma omp for schedule(static) nowait
      for (std::int64_t d = 0; d < g.wide / kBlock; ++d) {
        pack_pairs(g.y.part(col, cols), d, depth, g.y_pairs.get() + d * kBlock * width);
      }
    }
#pragma omp barrier
    for (std::int64_t k = strips * thread / team; k < strips * (thread + 1) / team; ++k) {
      const std::int64_t first = row + k * kBlock;
      const std::int64_t count = std::min<std::int64_t>(kBlock, row + rows - first);
      const Tile tile = multiply_both(student, teacher, first, count, col, cols, strip);
      total += sweep_gradient(pass, tile, sweep, width, columns);
      pack_rounded(tile.dS, kStripStride, width, rounded, g.dS.get() + k * kTile,
                   strips * kTile);
      if (g.want_x) add_to_dx(g, rounded, width, k * kBlock, col == 0);
    }
    if (thread == 0) stop = interrupted();
#pragma omp barrier
    if (g.want_y) add_to_dy(g, strips, col, width, row == 0);
  }
  return total;
}

// 1 / the largest dS. A loss that is multiplied by something then has the same dS to round,
// whatever that is.
inline double unit_of(const Backward& pass) {
  const double size = pass.size();
  return size > 0 && std::isfinite(size) ? 1 / size : 1;
}

void backward(Backward& pass, const Features& features, const FeatureGradients& gradients,
              Interrupted interrupted) {
  const Problem& p = pass.problem;
  const Pair student = student_of(features, p), teacher = teacher_of(features, p);
  const Products g(student, gradients);
  pass.unit = unit_of(pass);
  const Rescale rescale(1 / pass.unit);
  prepare(pass);
  std::vector<double> totals(p.threads, 0.0);
  ColumnTotals columns(pass, p.cols);
  bool stop = false;  // as in forward
#pragma omp parallel num_threads(p.threads)
  {
    [[maybe_unused]] const Unit unit;
    const Strip strip(deepest(student, teacher));
    const Buffer<Half> rounded(kBlock * kBackwardColumns);
    double total = 0;
    for (std::int64_t row = 0; row < p.rows && !stop; row += kRowBlock) {
      const std::int64_t rows = std::min<std::int64_t>(kRowBlock, p.rows - row);
      total += sweep_rows(pass, student, teacher, g, strip, rounded.get(),
                          columns.of(thread_number()), row, rows, interrupted, stop);
      if (!g.want_x) continue;
#pragma omp for schedule(static)
      for (std::int64_t i = 0; i < rows; ++i) {
        store_rounded(g.dx.get() + i * g.dx_stride, rescale,
                      gradients.x + (row + i) * g.x.cols, g.x.cols);
      }
    }
    if (g.want_y) store_dy(g, rescale, gradients.y);
    totals[thread_number()] = total;
  }
  for (const double total : totals) pass.dscale += total;
  columns.add_to(pass, 0);
}

}  // namespace

extern const Fused fused;
const Fused fused = {MXM_NAME(MXM_LEVEL), forward, backward};

}  // namespace MXM_LEVEL
}  // namespace mxm
