// The backward sweep of a row where there are rules. Symbols as in backends/interface.py.
//
// A pair has one exponential for its row and one for its column, or one for both: a removed pair's
// normaliser is that of the removed, e, and any other's n. Shared, a pair that is removed for both
// has the reference of the removed c', and every other c; `mixed` takes a factor from c' to c.

#pragma once

#include <cmath>

#include "rows_of_tile.h"
#include "passes.h"
#include "terms.h"
#include "told.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// One common reference for the negatives, one for what is removed; true where both serve. A pair that
// only a threshold removes for its row alone is above neither its e nor its column's n: with
// c' far above c its factor may vanish, and with c' far below c it would overflow.
inline bool share_told(Backward& pass) {
  const Problem& p = pass.problem;
  bool shared = share(pass.student, p);
  pass.removed.reference = pass.student.reference;
  pass.mixed = 1;
  if (pass.removed.rows.normaliser == nullptr) return shared;
  float least = INFINITY, most = -INFINITY;
  widen(pass.removed.rows, p.rows, least, most);
  widen(pass.removed.cols, p.cols, least, most);
  if (!(least < INFINITY)) return shared;  // nothing is removed
  pass.removed.reference = least;
  shared &= most - least <= kWidestRange;
  if (!p.filters) return shared;
  pass.mixed = std::exp(pass.student.reference - least);
  return shared && pass.student.reference - least <= kWidestRange;
}

// The factors of S and of what is removed, for one row or for kLanes columns.
template <class Value>
struct Factors {
  Value negative, negative_shift;
  Value removed, removed_shift;
  Value sum;  // d of the sums over the negatives
};

struct ToldColumns {
  ToldColumns(const Backward& pass, std::int64_t j)
      : groups(load(pass.problem.text_groups.data() + j)),
        S{at(pass.student.cols.factor, j), at(pass.student.cols.shift, j),
          at(pass.removed.cols.factor, j), at(pass.removed.cols.shift, j),
          at(pass.col_sums.factor, j)} {}

  static Floats at(const std::vector<float>& values, std::int64_t j) {
    return load(values.data() + j);
  }

  Ints groups;
  Factors<Floats> S;
};

inline Factors<float> factors_of_row(const Backward& pass, std::int64_t i) {
  return {pass.student.rows.factor[i], pass.student.rows.shift[i], pass.removed.rows.factor[i],
          pass.removed.rows.shift[i], pass.row_sums.factor[i]};
}

template <bool kShared>
inline Floats told_term(const Backward& pass, const Factors<float>& row,
                        const Factors<Floats>& cols, Floats S, const Removed& out) {
  const Floats sums = (out.row ? Floats{} : fill(row.sum)) + (out.cols ? Floats{} : cols.sum);
  if (kShared) {
    const Ints both = out.row & out.cols;
    const Floats mixed = both ? fill(1.0f) : fill(pass.mixed);
    const Floats of_row = out.row ? mixed * row.removed : fill(row.negative);
    const Floats of_cols = out.cols ? mixed * cols.removed : cols.negative;
    const Floats c = both ? fill(pass.removed.reference) : fill(pass.student.reference);
    return exponential(at_most(kWidestRange, S - c)) * (of_row + of_cols) + sums;
  }
  const Floats row_shift = out.row ? fill(row.removed_shift) : fill(row.negative_shift);
  const Floats cols_shift = out.cols ? cols.removed_shift : cols.negative_shift;
  const Floats of_row = out.row ? fill(row.removed) : fill(row.negative);
  const Floats of_cols = out.cols ? cols.removed : cols.negative;
  return exponential(at_most(0, S - row_shift)) * of_row +
         exponential(at_most(0, S - cols_shift)) * of_cols + sums;
}

// As sweep_row. It adds the gradients by the sums over the negatives too.
template <bool kShared, bool kTeacher, class Row>
float sweep_told_row(const Backward& pass, const Tile& tile, std::int64_t i) {
  const Problem& p = pass.problem;
  const std::int64_t row = tile.row + i;
  const bool multiplied = kTeacher || p.filters;
  const Row student(pass.kept_student, tile.student, tile, i);
  const Row teacher(multiplied ? pass.kept_teacher : pass.kept_student,
                    multiplied ? tile.teacher : tile.student, tile, i);
  const RuleRows rows = p.image_rules.from(row), cols = p.text_rules.from(tile.col);
  const Factors<float> of_row = factors_of_row(pass, row);
  float* const to = tile.dS + i * tile.dS_stride;
  Floats total{};
  for (std::int64_t j = 0; j < tile.cols; j += kLanes) {
    const ToldColumns columns(pass, tile.col + j);
    const Floats product = student(j);
    const Floats S = logit(product, p.scale) + offsets(rows, 0, cols, j);
    const Floats guide = multiplied ? teacher(j) : Floats{};
    const Removed out = p.filters ? removed(rows, 0, cols, j, guide) : removed(rows, 0, cols, j);
    const Floats negative = told_term<kShared>(pass, of_row, columns.S, S, out);
    Floats dS = columns.groups == p.image_groups[row] ? Floats{} : negative;
    if (kTeacher) {
      const Floats T = logit(guide, p.teacher_scale) + teacher_offsets(rows, 0, cols, j);
      const Side& side = pass.teacher.cols;
      dS += both_terms<kShared>(pass.teacher, row, T, load(side.factor.data() + tile.col + j),
                                load(side.shift.data() + tile.col + j));
    }
    store(to + j, dS);
    const Ints outside = lane_numbers() >= static_cast<std::int32_t>(tile.cols - j);
    total += outside ? Floats{} : dS * product;
  }
  return sum(total);
}

}  // namespace MXM_LEVEL
}  // namespace mxm
