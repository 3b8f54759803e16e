// The passes of the log-sum-exp losses as the Python module has them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "address.h"
#include "fused.h"
#include "interrupt.h"
#include "kernels.h"

namespace mxm {
namespace {

Tile make_tile(std::uintptr_t student, std::uintptr_t teacher, std::int64_t stride,
               std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
  return {at<const float>(student), at<const float>(teacher), stride, row, col, rows, cols,
          at<float>(student), stride};
}

// What is kept in fixed point of S, or of T: nothing where the address is 0.
Fixed make_fixed(const Problem& p, std::uintptr_t numbers, std::int64_t stride,
                 std::uintptr_t units) {
  if (numbers == 0) return {};
  const float* const rows = at<const float>(units);
  std::vector<float> cols(p.cols + kPad, 0.0f);
  std::copy_n(rows + p.rows, p.cols, cols.begin());
  return {at<const std::int16_t>(numbers), stride, rows, std::move(cols)};
}

class ForwardPass {
 public:
  ForwardPass(const std::string& level, const Problem& problem, std::uintptr_t positives,
              bool diagnostics, bool neg_sum)
      : kernels_(kernels(level)), pass_(problem, at<float>(positives), diagnostics, neg_sum) {}

  // Keeps the products of S, and of T, in fixed point: (M, stride) of 16 bits each, the inverse
  // units of the rows and columns of each, and (P,) T of the positives.
  void keep(std::uintptr_t student, std::uintptr_t teacher, std::int64_t stride,
            std::uintptr_t student_units, std::uintptr_t teacher_units,
            std::uintptr_t teacher_positives) {
    pass_.teacher_positives = at<float>(teacher_positives);
    pass_.student = make_keep(student, stride, student_units);
    pass_.teacher = make_keep(teacher, stride, teacher_units);
  }

  void sweep(const Tile& tile) { kernels_.forward_tile(pass_, tile); }

  void run_fused(const std::string& unit, const Features& features) {
    const Problem& p = pass_.problem;
    pass_.partials.assign(p.threads, pass_.statistics(kChunk));
    interruptible([&] { fused(unit).forward(pass_, features, interrupted); });
  }

  void finish(std::uintptr_t n_rows, std::uintptr_t n_cols, std::uintptr_t u_rows,
              std::uintptr_t u_cols, std::uintptr_t t_rows, std::uintptr_t t_cols) {
    const Problem& p = pass_.problem;
    kernels_.finish(pass_.rows.S, p.scale, at<float>(n_rows), nullptr, p.rows);
    kernels_.finish(pass_.cols.S, p.scale, at<float>(n_cols), nullptr, p.cols);
    if (!p.has_soft) return;
    const float scale = p.told ? 1 : p.scale;
    kernels_.finish(pass_.rows.T, scale, at<float>(t_rows), at<float>(u_rows), p.rows);
    kernels_.finish(pass_.cols.T, scale, at<float>(t_cols), at<float>(u_cols), p.cols);
  }

  // How many negatives remain, and beside T the log-sum-exp of S over what is removed.
  void finish_removed(std::uintptr_t counts_rows, std::uintptr_t counts_cols,
                      std::uintptr_t e_rows, std::uintptr_t e_cols) {
    const Problem& p = pass_.problem;
    std::copy(pass_.rows.negatives.begin(), pass_.rows.negatives.end(), at<float>(counts_rows));
    std::copy(pass_.cols.negatives.begin(), pass_.cols.negatives.end(), at<float>(counts_cols));
    if (!p.has_soft) return;
    kernels_.finish(pass_.rows.removed, p.scale, at<float>(e_rows), nullptr, p.rows);
    kernels_.finish(pass_.cols.removed, p.scale, at<float>(e_cols), nullptr, p.cols);
  }

  void finish_sums(std::uintptr_t m_rows, std::uintptr_t m_cols) {
    store_scaled(pass_.rows.neg_sum, at<float>(m_rows));
    store_scaled(pass_.cols.neg_sum, at<float>(m_cols));
  }

  void finish_diagnostics(std::uintptr_t m_rows, std::uintptr_t m_cols, std::uintptr_t h_rows,
                          std::uintptr_t h_cols) {
    store_hardest(pass_.rows.hardest, at<float>(m_rows));
    store_hardest(pass_.cols.hardest, at<float>(m_cols));
    if (!pass_.problem.has_soft) return;
    store_entropy(pass_.rows.self_weighted, at<float>(h_rows));
    store_entropy(pass_.cols.self_weighted, at<float>(h_cols));
  }

 private:
  Keep make_keep(std::uintptr_t to, std::int64_t stride, std::uintptr_t units) const {
    const float* const rows = at<const float>(units);
    return {at<std::int16_t>(to), stride, rows, units == 0 ? nullptr : rows + pass_.problem.rows};
  }

  void store_scaled(const std::vector<double>& sums, float* to) const {
    const float scale = pass_.problem.told ? 1 : pass_.problem.scale;
    for (const double total : sums) *to++ = static_cast<float>(total * scale);
  }

  static void store_hardest(const std::vector<float>& maxima, float* to) {
    for (const float top : maxima) *to++ = top > kNothing ? top : -INFINITY;
  }

  // t - sum_j softmax_j(T) T, which rounding may take below 0.
  void store_entropy(const Running& self_weighted, float* to) const {
    const float scale = pass_.problem.told ? 1 : pass_.problem.teacher_scale;
    for (std::size_t k = 0; k < self_weighted.top.size(); ++k) {
      const float average = scale * self_weighted.weighted[k] / self_weighted.total[k];
      to[k] = std::max(self_weighted.top[k] + std::log(self_weighted.total[k]) - average, 0.0f);
    }
  }

  const Kernels& kernels_;
  Forward pass_;
};

Side make_side(std::uintptr_t normaliser, std::uintptr_t upstream) {
  Side side;
  side.normaliser = at<const float>(normaliser);
  side.upstream = at<const float>(upstream);
  return side;
}

SumTerm make_sums(std::uintptr_t sums, std::uintptr_t upstream) {
  SumTerm term;
  term.sums = at<const float>(sums);
  term.upstream = at<const float>(upstream);
  return term;
}

class BackwardPass {
 public:
  // `statistics`: n, n', S of the positives, t, t', m, m', e, e'; `upstream`: dn, dn', dS_pos, du, du',
  // dm, dm', de, de'. Those of m are 0 where no sum over the negatives has a gradient, those of e where
  // no sum over removed pairs has one.
  BackwardPass(const std::string& level, const Problem& problem,
               const std::vector<std::uintptr_t>& statistics,
               const std::vector<std::uintptr_t>& upstream, bool offsets)
      : kernels_(kernels(level)) {
    pass_.problem = problem;
    pass_.student.rows = make_side(statistics.at(0), upstream.at(0));
    pass_.student.cols = make_side(statistics.at(1), upstream.at(1));
    pass_.positives = at<const float>(statistics.at(2));
    pass_.dpositives = at<const float>(upstream.at(2));
    pass_.teacher.rows = make_side(statistics.at(3), upstream.at(3));
    pass_.teacher.cols = make_side(statistics.at(4), upstream.at(4));
    pass_.row_sums = make_sums(statistics.at(5), upstream.at(5));
    pass_.col_sums = make_sums(statistics.at(6), upstream.at(6));
    pass_.removed.rows = make_side(statistics.at(7), upstream.at(7));
    pass_.removed.cols = make_side(statistics.at(8), upstream.at(8));
    if (offsets) pass_.want_offsets();
    pass_.unit = ordinary_unit(pass_.size());
    kernels_.prepare(pass_);
  }

  // Writes dS over the student's products, or elsewhere.
  void sweep(const Tile& tile) { kernels_.backward_tile(pass_, tile); }

  // Reads the products from what forward kept in fixed point.
  void read(std::uintptr_t student, std::uintptr_t teacher, std::int64_t stride,
            std::uintptr_t student_units, std::uintptr_t teacher_units,
            std::uintptr_t teacher_positives) {
    pass_.teacher_positives = at<const float>(teacher_positives);
    pass_.kept_student = make_fixed(pass_.problem, student, stride, student_units);
    pass_.kept_teacher = make_fixed(pass_.problem, teacher, stride, teacher_units);
  }

  // Writes dS elsewhere: what is kept stays as it is.
  void sweep_to(std::uintptr_t dS, std::int64_t dS_stride, std::uintptr_t student,
                std::uintptr_t teacher, std::int64_t stride, std::int64_t row, std::int64_t rows,
                std::int64_t col, std::int64_t cols) {
    Tile tile = make_tile(student, teacher, stride, row, rows, col, cols);
    tile.dS = at<float>(dS);
    tile.dS_stride = dS_stride;
    kernels_.backward_tile(pass_, tile);
  }

  void run_fused(const std::string& unit, const Features& features, std::uintptr_t dx,
                 std::uintptr_t dy) {
    const FeatureGradients gradients{at<std::uint16_t>(dx), at<std::uint16_t>(dy)};
    interruptible([&] { fused(unit).backward(pass_, features, gradients, interrupted); });
  }

  double unit() const { return pass_.unit; }
  double dscale() const { return pass_.dscale / pass_.unit; }
  void finish_offsets(std::uintptr_t doffsets) const { pass_.store_offsets(at<float>(doffsets)); }

 private:
  const Kernels& kernels_;
  Backward pass_;
};

}  // namespace
}  // namespace mxm
