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

// To the nearest number of bfloat16, of two the even one. The instruction for it takes what is below
// 2^-126 to 0, and bfloat16 has numbers there as float32 has.
inline __m256i nearest(Floats value) {
  const auto all = [](int number) { return _mm512_set1_epi32(number); };
  const __m512i bits = (__m512i)value;
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), all(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, all(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, all(0x7fc0)));
}

// A row of float32, rescaled and rounded.
inline void store_rounded(const float* from, const Rescale& rescale, Half* to,
                          std::int64_t count) {
  for (std::int64_t k = 0; k < count; k += kLanes) {
    const Floats value = rescale(load(from + k, count - k));
    const __m256i rounded = nearest(value);
    std::memcpy(to + k, &rounded, std::min<std::int64_t>(kLanes, count - k) * sizeof(Half));
  }
}

}  // namespace
}  // namespace MXM_LEVEL
}  // namespace mxm
