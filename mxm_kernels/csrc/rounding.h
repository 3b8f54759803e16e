// Sums in float32 to results in bfloat16, times a number that may be no float.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace mxm {
namespace MXM_LEVEL {
namespace {

// Multiplies by a number, in two steps, since that may be no float where the result is one. Both
// go the same way: nothing is lost between them.
struct Rescale {
  explicit Rescale(double factor) {
    constexpr int kMost = 250;  // beyond it no float has a float for result
    int exponent = 0;
    const double mantissa = std::frexp(factor, &exponent);
    exponent = std::clamp(exponent, -kMost, kMost);
    first = static_cast<float>(std::ldexp(1.0, exponent / 2));
    second = static_cast<float>(std::ldexp(mantissa, exponent - exponent / 2));
  }
  Floats operator()(Floats value) const { return value * first * second; }

  float first;
  float second;
};

// A row of float32, rescaled and rounded.
inline void store_rounded(const float* from, const Rescale& rescale, Half* to,
                          std::int64_t count) {
  for (std::int64_t k = 0; k < count; k += kLanes) {
    const Floats value = rescale(load(from + k, count - k));
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to + k, &rounded, std::min<std::int64_t>(kLanes, count - k) * sizeof(Half));
  }
}

}  // namespace
}  // namespace MXM_LEVEL
}  // namespace mxm
