// The softmax terms of dS: a reference that both sides share, their factors, their exponentials.

#pragma once

#include <algorithm>
#include <cmath>

#include "passes.h"
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
  for (std::int64_t k = 0; side.normaliser != nullptr && k < length; ++k) {
    const float l = side.normaliser[k];
    side.shift[k] = l;
    if (l == -INFINITY) continue;
    side.factor[k] = static_cast<float>(side.upstream[k] * scale);
    if (term.shared) side.factor[k] *= std::exp(term.reference - l);
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

}  // namespace MXM_LEVEL
}  // namespace mxm
