// The passes of the sigmoid losses as the Python module has them.

#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "address.h"
#include "kernels.h"

namespace mxm {
namespace {

class SigmoidForwardPass {
 public:
  SigmoidForwardPass(const std::string& level, const Problem& problem, float bias,
                     std::uintptr_t positives)
      : kernels_(kernels(level)), pass_(problem, bias, at<float>(positives)) {}

  void sweep(const Tile& tile) { kernels_.sigmoid_forward_tile(pass_, tile); }

  void finish(std::uintptr_t r_rows, std::uintptr_t r_cols) const {
    std::copy(pass_.rows.begin(), pass_.rows.end(), at<float>(r_rows));
    std::copy(pass_.cols.begin(), pass_.cols.end(), at<float>(r_cols));
  }

 private:
  const Kernels& kernels_;
  SigmoidForward pass_;
};

// Upstream gradients times s and the unit; dS is then unit times the gradient of x y^T.
std::vector<float> scaled(const float* upstream, std::int64_t length, double scale) {
  std::vector<float> values(length + kPad, 0.0f);
  for (std::int64_t k = 0; k < length; ++k) values[k] = static_cast<float>(upstream[k] * scale);
  return values;
}

// `rows` and `cols` are the upstream gradients, `positives` the greatest of the positives'.
void set_up(SigmoidBackward& pass, const Problem& problem, float bias, const float* rows,
            const float* cols, double positives) {
  double largest = largest_of(rows, problem.rows, positives);
  largest = largest_of(cols, problem.cols, largest);
  pass.problem = problem;
  pass.bias = bias;
  pass.unit = ordinary_unit(largest * std::fabs(problem.scale));
  pass.rows = scaled(rows, problem.rows, pass.upstream_scale());
  pass.cols = scaled(cols, problem.cols, pass.upstream_scale());
}

class SigmoidBackwardPass {
 public:
  // `upstream`: dr, dr', dS_pos.
  SigmoidBackwardPass(const std::string& level, const Problem& problem, float bias,
                      std::uintptr_t positives, const std::vector<std::uintptr_t>& upstream,
                      bool offsets)
      : kernels_(kernels(level)) {
    pass_.positives = at<const float>(positives);
    pass_.dpositives = at<const float>(upstream.at(2));
    set_up(pass_, problem, bias, at<const float>(upstream.at(0)), at<const float>(upstream.at(1)),
           largest_of(pass_.dpositives, problem.image_offsets[problem.rows]));
    if (offsets) pass_.want_offsets();
  }

  void sweep(const Tile& tile) { kernels_.sigmoid_backward_tile(pass_, tile); }

  double unit() const { return pass_.unit; }
  double dscale() const { return pass_.dscale / pass_.unit; }
  double dbias() const { return pass_.dbias / pass_.unit; }
  void finish_offsets(std::uintptr_t doffsets) const { pass_.store_offsets(at<float>(doffsets)); }

 private:
  const Kernels& kernels_;
  SigmoidBackward pass_;
};

class SigmoidLossPass {
 public:
  // `weights`: a of the rows, a of the columns, w of the positives or 0.
  SigmoidLossPass(const std::string& level, const Problem& problem, float bias,
                  std::uintptr_t scratch, const std::vector<std::uintptr_t>& weights,
                  bool offsets)
      : kernels_(kernels(level)) {
    const float* const rows = at<const float>(weights.at(0));
    const float* const cols = at<const float>(weights.at(1));
    const std::int64_t pairs = problem.image_offsets[problem.rows];
    pass_.products = at<float>(scratch);
    pass_.losses.assign(problem.rows, 0.0);
    pass_.pair_weights = at<const float>(weights.at(2));
    set_up(pass_, problem, bias, rows, cols, largest_of(pass_.pair_weights, pairs));
    if (offsets) pass_.want_offsets();
  }

  void sweep(const Tile& tile) { kernels_.sigmoid_loss_tile(pass_, tile); }

  double loss() const {
    return std::accumulate(pass_.losses.begin(), pass_.losses.end(), 0.0) / pass_.unit;
  }
  double unit() const { return pass_.unit; }
  double dscale() const { return pass_.dscale / pass_.unit; }
  double dbias() const { return pass_.dbias / pass_.unit; }
  void finish_offsets(std::uintptr_t doffsets) const { pass_.store_offsets(at<float>(doffsets)); }

 private:
  const Kernels& kernels_;
  SigmoidLoss pass_;
};

}  // namespace
}  // namespace mxm
