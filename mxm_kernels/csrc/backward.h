// Backward sweep of a tile: dS over the student's products, and the sum of dS * S.

#pragma once

#include <algorithm>
#include <cmath>

#include "passes.h"
#include "positives.h"
#include "threads.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// With c the least normaliser, exp(L - c) is at most exp(range) and exp(c - l) at least
// exp(-range): at 40 neither overflows, and 2^-58 times an upstream gradient stays a normal
// number. What vanishes, L < c - 87, is below exp(-87) of its row and column.
constexpr float kWidestRange = 40.0f;

inline void widen(const Side& side, std::int64_t length, float& least, float& most) {
  for (std::int64_t k = 0; k < length; ++k) {
    const float l = side.normaliser[k];
    if (l == -INFINITY) continue;  // a row without negatives has no terms to scale
    least = std::min(least, l);
    most = std::max(most, l);
  }
}

inline void prepare_side(Side& side, std::int64_t length, const Term& term, double scale) {
  side.factor.assign(length + kPad, 0.0f);
  side.shift.assign(length + kPad, 0.0f);
  for (std::int64_t k = 0; k < length; ++k) {
    const float l = side.normaliser[k];
    side.shift[k] = l;
    side.factor[k] = static_cast<float>(side.upstream[k] * scale);
    if (term.shared) side.factor[k] *= l == -INFINITY ? 0.0f : std::exp(term.reference - l);
  }
}

// Finds the common reference; true if the normalisers are close enough together for it.
inline bool share(Term& term, const Problem& p) {
  float least = INFINITY, most = -INFINITY;
  widen(term.rows, p.rows, least, most);
  widen(term.cols, p.cols, least, most);
  term.reference = least < INFINITY ? least : 0.0f;
  return most - least <= kWidestRange;  // -inf without any negative: nothing is out of range
}

// Their part of the sum of dS * S is known: d times the sums.
inline void prepare_sums(Backward& pass, SumTerm& term, std::int64_t length) {
  if (term.upstream == nullptr) return;
  term.factor.assign(length + kPad, 0.0f);
  for (std::int64_t k = 0; k < length; ++k) {
    const double scaled = term.upstream[k] * pass.upstream_scale();
    term.factor[k] = static_cast<float>(scaled);
    pass.dscale += scaled * term.sums[k];
  }
}

// One sweep serves both terms, so they share their exponentials together or not at all.
inline void prepare(Backward& pass) {
  const Problem& p = pass.problem;
  pass.dscale = 0;
  bool shared = share(pass.student, p);
  if (p.has_teacher) shared &= share(pass.teacher, p);
  for (Term* term : {&pass.student, &pass.teacher}) {
    if (term == &pass.teacher && !p.has_teacher) continue;
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
    if (!pass.problem.has_teacher) return;
    T_factor = load(pass.teacher.cols.factor.data() + j);
    T_shift = load(pass.teacher.cols.shift.data() + j);
  }

  Ints groups;
  Floats S_factor, S_shift;
  Floats T_factor{}, T_shift{};
};

// Both softmax terms of row i: d_i exp(L - l_i) + d_j exp(L - l_j). No logit is greater than its
// normalisers but by their rounding, which is held back: that of 1e9 is 64.
template <bool kShared>
inline Floats both_terms(const Term& term, std::int64_t i, Floats L, Floats factor,
                         Floats shift) {
  const float row = term.rows.factor[i];
  if (kShared) return exponential(at_most(kWidestRange, L - term.reference)) * (row + factor);
  return exponential(at_most(0, L - term.rows.shift[i])) * row +
         exponential(at_most(0, L - shift)) * factor;
}

// The products of a row of the tile, as floats or from what is kept in fixed point.
struct FloatRow {
  FloatRow(const Fixed&, const float* products, const Tile& tile, std::int64_t i)
      : from(products + i * tile.stride) {}
  Floats operator()(std::int64_t j) const { return load(from + j); }

  const float* from;
};

struct FixedRow {
  FixedRow(const Fixed& kept, const float*, const Tile& tile, std::int64_t i)
      : from(kept.numbers + (tile.row + i) * kept.stride + tile.col),
        unit(kept.rows[tile.row + i]),
        units(kept.cols.data() + tile.col) {}
  Floats operator()(std::int64_t j) const { return widened(from + j) * (load(units + j) * unit); }
  float at(std::int64_t j) const { return from[j] * (units[j] * unit); }

  const std::int16_t* from;
  float unit;
  const float* units;
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

// Adds the gradients by the sums over the negatives to row i.
inline void add_sums(const Backward& pass, const Tile& tile, std::int64_t i) {
  if (pass.row_sums.upstream == nullptr) return;
  const Ints group = Ints{} + pass.problem.image_groups[tile.row + i];
  const float of_row = pass.row_sums.factor[tile.row + i];
  float* const to = tile.dS + i * tile.dS_stride;
  for (std::int64_t j = 0; j < tile.cols; j += kLanes) {
    const Ints positive = load(pass.problem.text_groups.data() + tile.col + j) == group;
    const Floats share = load(pass.col_sums.factor.data() + tile.col + j) + of_row;
    store(to + j, load(to + j) + (positive ? Floats{} : share));
  }
}

// Adds the positives' own gradients to row i; returns the sum of those times S.
inline double add_positives(const Gradient& pass, const Tile& tile, std::int64_t i) {
  double total = 0;
  each_positive(pass.problem, tile, i, [&](std::int64_t slot, std::int64_t j) {
    const float gradient = static_cast<float>(pass.dpositives[slot] * pass.upstream_scale());
    tile.dS[i * tile.dS_stride + j] += gradient;
    total += static_cast<double>(gradient) * pass.positives[slot];
  });
  return total;
}

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
    total += static_cast<double>(share[0]) * pass.positives[slot] -
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
RowSweep row_sweep_of(const Backward& pass) {
  const bool has_teacher = pass.problem.has_teacher;
  const bool shared = pass.student.shared;
  if (has_teacher) return shared ? sweep_row<true, true, Row> : sweep_row<false, true, Row>;
  return shared ? sweep_row<true, false, Row> : sweep_row<false, false, Row>;
}

inline RowSweep row_sweep(const Backward& pass) {
  return pass.kept_student.numbers == nullptr ? row_sweep_of<FloatRow>(pass)
                                              : row_sweep_of<FixedRow>(pass);
}

inline void backward_tile(Backward& pass, const Tile& tile) {
  const RowSweep sweep = row_sweep(pass);
  std::vector<double> totals(pass.problem.threads, 0.0);
#pragma omp parallel num_threads(pass.problem.threads)
  {
    const int team = team_size(), thread = thread_number();
    double total = 0;
    for (std::int64_t i = tile.rows * thread / team; i < tile.rows * (thread + 1) / team; ++i) {
      total += static_cast<double>(sweep(pass, tile, i)) * pass.problem.scale;
      total += mend(pass, tile, i);
      add_sums(pass, tile, i);
      total += add_positives(pass, tile, i);
    }
    totals[thread] = total;
  }
  for (const double total : totals) pass.dscale += total;
}

}  // namespace MXM_LEVEL
}  // namespace mxm
