// Backward sweep of a tile: dS over the student's products, and the sum of dS * S.

#pragma once

#include <algorithm>
#include <cmath>

#include "passes.h"
#include "positives.h"
#include "rows_of_tile.h"
#include "terms.h"
#include "threads.h"
#include "told_sweep.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// Without rules their part of the sum of dS * S is known: d times the sums. With rules the sweep adds
// them, and sums that.
inline void prepare_sums(Backward& pass, SumTerm& term, std::int64_t length) {
  const bool told = pass.problem.told;
  if (told || term.upstream != nullptr) term.factor.assign(length + kPad, 0.0f);
  if (term.upstream == nullptr) return;
  for (std::int64_t k = 0; k < length; ++k) {
    const double scaled = term.upstream[k] * pass.upstream_scale();
    term.factor[k] = static_cast<float>(scaled);
    if (!told) pass.dscale += scaled * term.sums[k];
  }
}

// One sweep serves both terms, so they share their exponentials together or not at all.
inline void prepare(Backward& pass) {
  const Problem& p = pass.problem;
  pass.dscale = 0;
  bool shared = p.told ? share_told(pass) : share(pass.student, p);
  if (p.has_soft) shared &= share(pass.teacher, p);
  for (Term* term : {&pass.student, &pass.teacher, &pass.removed}) {
    if (term == &pass.teacher && !p.has_soft) continue;
    if (term == &pass.removed && !p.told) continue;
    term->shared = shared;
    prepare_side(term->rows, p.rows, *term, pass.upstream_scale());
    prepare_side(term->cols, p.cols, *term, pass.upstream_scale());
  }
  prepare_sums(pass, pass.row_sums, p.rows);
  prepare_sums(pass, pass.col_sums, p.cols);
}

// The columns' side of the terms, kLanes columns of it.
struct Columns {
  Columns(const Backward& pass, std::int64_t j)
      : groups(load(pass.problem.text_groups.data() + j)),
        S_factor(load(pass.student.cols.factor.data() + j)),
        S_shift(load(pass.student.cols.shift.data() + j)) {
    if (!pass.problem.has_soft) return;
    T_factor = load(pass.teacher.cols.factor.data() + j);
    T_shift = load(pass.teacher.cols.shift.data() + j);
  }

  Ints groups;
  Floats S_factor, S_shift;
  Floats T_factor{}, T_shift{};
};

// dS of row i of the tile, the positives' own gradient left out. Returns the sum of dS times the
// products, which it may be written over.
template <bool kShared, bool kTeacher, class Row>
float sweep_row(const Backward& pass, const Tile& tile, std::int64_t i) {
  const Problem& p = pass.problem;
  const std::int64_t row = tile.row + i;
  const Row student(pass.kept_student, tile.student, tile, i);
  const Row teacher(kTeacher ? pass.kept_teacher : pass.kept_student,
                    kTeacher ? tile.teacher : tile.student, tile, i);
  float* const to = tile.dS + i * tile.dS_stride;
  Floats total{};
  for (std::int64_t j = 0; j < tile.cols; j += kLanes) {
    const Columns columns(pass, tile.col + j);
    const Floats product = student(j);
    const Floats negative = both_terms<kShared>(pass.student, row, logit(product, p.scale),
                                                columns.S_factor, columns.S_shift);
    Floats dS = columns.groups == p.image_groups[row] ? Floats{} : negative;
    if (kTeacher) {
      dS += both_terms<kShared>(pass.teacher, row, logit(teacher(j), p.teacher_scale),
                                columns.T_factor, columns.T_shift);
    }
    store(to + j, dS);
    const Floats share = dS * product;
    total += j + kLanes <= tile.cols
                 ? share
                 : (lane_numbers() < static_cast<std::int32_t>(tile.cols - j) ? share : Floats{});
  }
  return sum(total);
}

// Adds the gradients by the sums over the negatives to row i; with rules sweep_told_row has.
inline void add_sums(const Backward& pass, const Tile& tile, std::int64_t i) {
  if (pass.row_sums.upstream == nullptr || pass.problem.told) return;
  const Ints group = Ints{} + pass.problem.image_groups[tile.row + i];
  const float of_row = pass.row_sums.factor[tile.row + i];
  float* const to = tile.dS + i * tile.dS_stride;
  for (std::int64_t j = 0; j < tile.cols; j += kLanes) {
    const Ints positive = load(pass.problem.text_groups.data() + tile.col + j) == group;
    const Floats share = load(pass.col_sums.factor.data() + tile.col + j) + of_row;
    store(to + j, load(to + j) + (positive ? Floats{} : share));
  }
}

// S of a positive, its offsets left out.
inline double without_offset(const Gradient& pass, std::int64_t slot, std::int64_t row,
                             std::int64_t col) {
  const double S = pass.positives[slot];
  return pass.problem.told ? S - pass.problem.offset(row, col) : S;
}

// Adds the positives' own gradients to row i; returns the sum of those times S.
inline double add_positives(const Gradient& pass, const Tile& tile, std::int64_t i) {
  double total = 0;
  each_positive(pass.problem, tile, i, [&](std::int64_t slot, std::int64_t j) {
    const float gradient = static_cast<float>(pass.dpositives[slot] * pass.upstream_scale());
    tile.dS[i * tile.dS_stride + j] += gradient;
    total += static_cast<double>(gradient) * without_offset(pass, slot, tile.row + i, tile.col + j);
  });
  return total;
}

// Adds row i of dS to the sums of its row and of the columns, the tile's first at `columns`.
inline void add_totals(Gradient& pass, const Tile& tile, std::int64_t i, double* columns) {
  const float* const dS = tile.dS + i * tile.dS_stride;
  Doubles total{};
  std::int64_t j = 0;
  for (; j + kLanes <= tile.cols; j += kLanes) {
    const Doubles value = doubles(load(dS + j));
    total += value;
    store(columns + j, load(columns + j) + value);
  }
  double rest = 0;
  for (; j < tile.cols; ++j) {
    rest += dS[j];
    columns[j] += dS[j];
  }
  pass.row_totals[tile.row + i] += rest + sum(total);
}

// The sums down the columns, each thread's own, `width` for each.
class ColumnTotals {
 public:
  ColumnTotals(const Gradient& pass, std::int64_t width)
      : width_(width), totals_(pass.wants_offsets() ? pass.problem.threads * width : 0, 0.0) {}

  double* of(int thread) {
    return totals_.empty() ? nullptr : totals_.data() + thread * width_;
  }

  // Those of the columns from `first` on, in the order of the threads.
  void add_to(Gradient& pass, std::int64_t first) const {
    for (std::size_t k = 0; k < totals_.size(); ++k) {
      pass.col_totals[first + static_cast<std::int64_t>(k) % width_] += totals_[k];
    }
  }

 private:
  std::int64_t width_;
  std::vector<double> totals_;
};

// T's share of dS at the positives of row i from T itself, where the sweep had it in fixed point:
// near convergence the targets lie there, and dS is what they differ by from the probabilities.
// Returns what the sum of dS * S gains.
template <bool kShared>
double mend_row(const Backward& pass, const Tile& tile, std::int64_t i) {
  const std::int64_t row = tile.row + i;
  const FixedRow student(pass.kept_student, tile.student, tile, i);
  double total = 0;
  each_positive(pass.problem, tile, i, [&](std::int64_t slot, std::int64_t j) {
    const Side& cols = pass.teacher.cols;
    float& dS = tile.dS[i * tile.dS_stride + j];
    const Floats share = both_terms<kShared>(pass.teacher, row, fill(pass.teacher_positives[slot]),
                                             fill(cols.factor[tile.col + j]),
                                             fill(cols.shift[tile.col + j]));
    const float product = student.at(j);
    const double S = without_offset(pass, slot, row, tile.col + j);
    total += static_cast<double>(share[0]) * S -
             static_cast<double>(dS) * product * pass.problem.scale;
    dS = share[0];
  });
  return total;
}

inline double mend(const Backward& pass, const Tile& tile, std::int64_t i) {
  if (pass.teacher_positives == nullptr) return 0;
  return pass.teacher.shared ? mend_row<true>(pass, tile, i) : mend_row<false>(pass, tile, i);
}

using RowSweep = float (*)(const Backward&, const Tile&, std::int64_t);

template <class Row>
RowSweep told_row_sweep_of(const Backward& pass) {
  const bool has_soft = pass.problem.has_soft;
  const bool shared = pass.student.shared;
  if (has_soft) return shared ? sweep_told_row<true, true, Row> : sweep_told_row<false, true, Row>;
  return shared ? sweep_told_row<true, false, Row> : sweep_told_row<false, false, Row>;
}

template <class Row>
RowSweep row_sweep_of(const Backward& pass) {
  const bool has_soft = pass.problem.has_soft;
  const bool shared = pass.student.shared;
  if (pass.problem.told) return told_row_sweep_of<Row>(pass);
  if (has_soft) return shared ? sweep_row<true, true, Row> : sweep_row<false, true, Row>;
  return shared ? sweep_row<true, false, Row> : sweep_row<false, false, Row>;
}

inline RowSweep row_sweep(const Backward& pass) {
  return pass.kept_student.numbers == nullptr ? row_sweep_of<FloatRow>(pass)
                                              : row_sweep_of<FixedRow>(pass);
}

inline void backward_tile(Backward& pass, const Tile& tile) {
  const RowSweep sweep = row_sweep(pass);
  std::vector<double> totals(pass.problem.threads, 0.0);
  ColumnTotals columns(pass, tile.cols);
#pragma omp parallel num_threads(pass.problem.threads)
  {
    const int team = team_size(), thread = thread_number();
    double total = 0;
    for (std::int64_t i = tile.rows * thread / team; i < tile.rows * (thread + 1) / team; ++i) {
      total += static_cast<double>(sweep(pass, tile, i)) * pass.problem.scale;
      total += mend(pass, tile, i);
      add_sums(pass, tile, i);
      total += add_positives(pass, tile, i);
      if (pass.wants_offsets()) add_totals(pass, tile, i, columns.of(thread));
    }
    totals[thread] = total;
  }
  for (const double total : totals) pass.dscale += total;
  columns.add_to(pass, tile.col);
}

}  // namespace MXM_LEVEL
}  // namespace mxm
