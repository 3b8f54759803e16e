// Merging sums into a running log-sum-exp, and reading it out.

#pragma once

#include <algorithm>
#include <cmath>

#include "passes.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// Adds `length` sums, each relative to its own `top`, to the running ones from `first` on.
inline void merge(Running& running, std::int64_t first, const float* top, const float* total,
                  const float* weighted, std::int64_t length) {
  const bool weighs = !running.weighted.empty();
  for (std::int64_t k = 0; k < length; k += kLanes) {
    const std::int64_t count = length - k;
    float* const old_top = running.top.data() + first + k;
    float* const old_total = running.total.data() + first + k;
    const Floats before = load(old_top, count), after = load(top + k, count);
    const Floats joint = maximum(before, after);
    const Floats old_share = exponential(before - joint), share = exponential(after - joint);
    store(old_top, joint, count);
    store(old_total, load(old_total, count) * old_share + load(total + k, count) * share, count);
    if (!weighs) continue;
    float* const old_sum = running.weighted.data() + first + k;
    store(old_sum, load(old_sum, count) * old_share + load(weighted + k, count) * share, count);
  }
}

// Adds counts to the running ones from `first` on, where there are any.
inline void count(std::vector<float>& running, std::int64_t first, const std::int32_t* counts,
                  std::int64_t length) {
  if (running.empty()) return;
  for (std::int64_t k = 0; k < length; ++k) running[first + k] += static_cast<float>(counts[k]);
}

// Raises the running maxima from `first` on to `length` others.
inline void raise(std::vector<float>& maxima, std::int64_t first, const float* others,
                  std::int64_t length) {
  for (std::int64_t k = 0; k < length; ++k) {
    maxima[first + k] = std::max(maxima[first + k], others[k]);
  }
}

template <class Sums>
inline void merge(Running& running, std::int64_t first, const Sums& sums, std::int64_t length) {
  merge(running, first, sums.top, sums.total, sums.weighted, length);
}

// Log-sum-exp, and `scale` times the weighted average where it is wanted.
inline void finish(const Running& running, float scale, float* logsumexp, float* average,
                   std::int64_t length) {
  for (std::int64_t k = 0; k < length; ++k) {
    logsumexp[k] = running.top[k] + std::log(running.total[k]);
    if (average != nullptr) average[k] = scale * running.weighted[k] / running.total[k];
  }
}

}  // namespace MXM_LEVEL
}  // namespace mxm
