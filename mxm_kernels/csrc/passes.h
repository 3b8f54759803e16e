// What the two sweeps read and write. Symbols as in backends/interface.py.
//
// A pass walks tiles of the M x N plane. The caller multiplies features into the tiles; a
// level's kernels (kernels.h) sweep them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "rules.h"
#include "sums.h"

#define MXM_TEXT(name) #name
#define MXM_NAME(name) MXM_TEXT(name)  // of a level, as a string

namespace mxm {

// Whether a pass is to end before it is done. Cheap enough to ask every few microseconds.
using Interrupted = bool (*)();

struct Problem {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  bool has_soft = false;  // whether T is wanted: a filter alone only compares its products
  float scale = 1;
  float teacher_scale = 1;
  const std::int32_t* image_groups = nullptr;   // (M,)
  std::vector<std::int32_t> text_groups;        // (N + kPad,)
  const std::int64_t* image_offsets = nullptr;  // (M + 1,)
  const std::int64_t* pair_texts = nullptr;     // (P,), ascending within a row
  int threads = 1;
  bool told = false;     // whether there are rules
  bool removes = false;  // whether they remove pairs,
  bool filters = false;  // by thresholds too
  Rules image_rules;     // empty where nothing is told
  Rules text_rules;

  // The offset of a pair, where there are rules.
  float offset(std::int64_t row, std::int64_t col) const {
    return image_rules.offsets[row] + text_rules.offsets[col];
  }
  float teacher_offset(std::int64_t row, std::int64_t col) const {
    return image_rules.teacher_offsets[row] + text_rules.teacher_offsets[col];
  }
};

// Products of a tile, not yet scaled. A row may be read up to `padded(cols)`, garbage included.
struct Tile {
  const float* student = nullptr;
  const float* teacher = nullptr;  // null without one
  std::int64_t stride = 0;         // floats from row to row, a multiple of kPad
  std::int64_t row = 0;      // where the tile begins in the plane
  std::int64_t col = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  float* dS = nullptr;         // where backward writes, mostly over the student's
  std::int64_t dS_stride = 0;  // floats from row to row of it
};

// A whole matrix of products in 16-bit fixed point, (M, stride): entry (i, j) is the number times
// rows[i] cols[j].
struct Fixed {
  const std::int16_t* numbers = nullptr;  // null: the products come as floats
  std::int64_t stride = 0;
  const float* rows = nullptr;  // (M,)
  std::vector<float> cols;      // (N + kPad,)
};

// Where forward keeps such a matrix; `rows` and `cols` are the inverse units.
struct Keep {
  std::int16_t* to = nullptr;  // null: it keeps nothing
  std::int64_t stride = 0;     // a multiple of kLine
  const float* rows = nullptr;
  const float* cols = nullptr;
};

constexpr std::int64_t kLine = 32;  // 16-bit numbers in a line of the cache

struct Forward {
  Forward(const Problem& problem, float* positives, bool diagnostics, bool neg_sum)
      : problem(problem),
        diagnostics(diagnostics),
        neg_sum(neg_sum),
        positives(positives),
        rows(statistics(problem.rows)),
        cols(statistics(problem.cols)) {}

  Statistics statistics(std::int64_t length) const {
    return {length, problem.has_soft, diagnostics, neg_sum, problem.removes};
  }

  Problem problem;
  bool diagnostics;
  bool neg_sum;
  float* positives;  // (P,)
  Statistics rows;
  Statistics cols;
  StripSums strips;  // of the tile at hand
  // Each thread's column statistics of the columns that the fused pass has at hand. They are made by
  // module.cpp: what a level makes has that level's instructions, and the linker keeps one copy.
  std::vector<Statistics> partials;
  Keep student;
  Keep teacher;
  float* teacher_positives = nullptr;  // (P,) T, null where it is not kept
};

// One side of a term of dS, d_i exp(L_ij - l_i) or d_j exp(L_ij - l_j), for all rows or all
// columns. With a common reference c it is exp(L_ij - c) d exp(c - l), and the two sides share
// the exponential; `factor` is then d exp(c - l), else d.
struct Side {
  const float* normaliser = nullptr;  // l
  const float* upstream = nullptr;    // d
  std::vector<float> factor;              // (length + kPad,)
  std::vector<float> shift;               // (length + kPad,) l
};

struct Term {
  Side rows;
  Side cols;
  float reference = 0;  // c
  bool shared = false;
};

// The gradients by the sums of S over the negatives, d_i + d_j of dS: null without them.
struct SumTerm {
  const float* sums = nullptr;      // (M,) or (N,) the sums themselves
  const float* upstream = nullptr;  // d
  std::vector<float> factor;        // (length + kPad,) d, scaled as those of the other terms
};

// What the backward passes have in common. They scale the upstream gradients by s and the unit:
// dS is the gradient of x y^T, and the products need no scaling.
struct Gradient {
  Problem problem;
  const float* positives = nullptr;   // (P,) S
  const float* dpositives = nullptr;  // (P,)
  double unit = 1;                    // factor that dS carries, and the gradients must lose
  double dscale = 0;                  // sum of dS * S, the offsets left out of S
  std::vector<double> row_totals;     // (M,) sums of dS, empty where offsets need no gradient
  std::vector<double> col_totals;     // (N,)

  bool wants_offsets() const { return !row_totals.empty(); }
  void want_offsets() {
    row_totals.assign(problem.rows, 0.0);
    col_totals.assign(problem.cols, 0.0);
  }

  // In double: the unit times the scale may be no float where dS is one.
  double upstream_scale() const { return problem.scale * unit; }

  // The gradients of the offsets, of rows and then of columns.
  void store_offsets(float* to) const {
    for (const auto* totals : {&row_totals, &col_totals}) {
      for (const double total : *totals) *to++ = static_cast<float>(total / upstream_scale());
    }
  }
};

// The greatest magnitude of `values`, which may be null, and `least`.
inline double largest_of(const float* values, std::int64_t length, double least = 0) {
  float largest = 0;
  for (std::int64_t k = 0; values != nullptr && k < length; ++k) {
    largest = std::max(largest, std::fabs(values[k]));
  }
  return std::max<double>(largest, least);
}

// The unit for dS of that size: a power of two where floats could not hold it and what it is
// multiplied by on the way, exp(-40) = 2^-58 included (backward.h), else 1.
inline double ordinary_unit(double size) {
  constexpr int kOrdinary = 40;
  if (!(size > 0) || !std::isfinite(size)) return 1;
  const int exponent = std::ilogb(size);
  return std::abs(exponent) <= kOrdinary ? 1 : std::ldexp(1.0, -exponent);
}

struct Backward : Gradient {
  Term student;
  Term teacher;
  Term removed;     // of S over the removed pairs; null sides where nothing has a gradient by it
  float mixed = 1;  // exp(c - c') of the references of S and of what is removed
  SumTerm row_sums;
  SumTerm col_sums;
  Fixed kept_student;
  Fixed kept_teacher;
  const float* teacher_positives = nullptr;  // (P,) T beside what is kept in fixed point

  // The greatest upstream gradient times what it is multiplied by, the unit left out.
  double size() const {
    const Problem& p = problem;
    double largest = largest_of(dpositives, p.image_offsets[p.rows]);
    largest = largest_of(student.rows.upstream, p.rows, largest);
    largest = largest_of(student.cols.upstream, p.cols, largest);
    largest = largest_of(row_sums.upstream, p.rows, largest);
    largest = largest_of(col_sums.upstream, p.cols, largest);
    largest = largest_of(removed.rows.upstream, p.rows, largest);
    largest = largest_of(removed.cols.upstream, p.cols, largest);
    if (p.has_soft) {
      largest = largest_of(teacher.rows.upstream, p.rows, largest);
      largest = largest_of(teacher.cols.upstream, p.cols, largest);
    }
    return largest * std::fabs(p.scale);
  }
};

// Sums of softplus(S + b) over the negatives of all rows and columns.
struct SigmoidForward {
  SigmoidForward(const Problem& problem, float bias, float* positives)
      : problem(problem),
        bias(bias),
        positives(positives),
        rows(problem.rows, 0.0),
        cols(problem.cols, 0.0) {}

  Problem problem;
  float bias;
  float* positives;  // (P,)
  std::vector<double> rows;
  std::vector<double> cols;
  StripSums strips;  // of the tile at hand
};

struct SigmoidBackward : Gradient {
  float bias = 0;
  std::vector<float> rows;  // (M,) upstream gradients times s and the unit
  std::vector<float> cols;  // (N + kPad,)
  std::vector<double> losses;  // (M,) of the rows: softplus(S + b), weighted by those
  double dbias = 0;         // sum of the negatives' dS
};

// The whole loss and its gradient: the upstream gradients are its own weights, known beforehand.
struct SigmoidLoss : SigmoidBackward {
  float* products = nullptr;            // (P,) scratch: products of the positives of a row
  const float* pair_weights = nullptr;  // (P,) of the positives, null: those of row and column
};

}  // namespace mxm
