// The operators over rows and pairs; backends/pairs.py is their definition.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace mxm {

struct RowProblem {
  const float* n = nullptr;                // (rows,)
  const float* S = nullptr;                // (P,)
  const float* u = nullptr;                // (rows,), null where the soft loss has no share
  const float* weights = nullptr;          // (P,)
  const std::int64_t* offsets = nullptr;   // (rows + 1,)
  const std::int64_t* slots = nullptr;     // (P,) where S and dS of each pair are; null: in order
  std::int64_t rows = 0;
  float hard = 1;
  float soft = 0;
};

struct RowLosses {
  float* losses;  // (rows,)
  float* dn;      // (rows,)
  float* dS;      // (P,), added to
};

// A feature that is not finite makes S of its positives infinite or NaN. Where it has none, all
// its S may be -inf and drop out of every other sum, but then its own n is -inf.
inline void mixed_row(const RowProblem& p, const RowLosses& out, std::int64_t i) {
  const std::int64_t first = p.offsets[i], last = p.offsets[i + 1];
  const auto place = [&p](std::int64_t k) { return p.slots == nullptr ? k : p.slots[k]; };
  const auto finite = [](float S) { return std::isinf(S) ? NAN : S; };
  const float n = p.n[i];
  float loss = first < last || std::isfinite(n) ? 0 : NAN, dn = loss, top = n;
  for (std::int64_t k = first; k < last; ++k) {
    const float S = finite(p.S[place(k)]), margin = n - S, weight = p.hard * p.weights[k];
    const float e = std::exp(-std::fabs(margin));  // of the smaller side: no overflow
    loss += weight * (std::max(margin, 0.0f) + std::log1p(e));
    const float pull = weight * (margin > 0 ? 1.0f : e) / (1.0f + e);
    dn += pull;
    out.dS[place(k)] -= pull;
    top = std::max(top, S);
  }
  if (p.soft != 0) {
    // Shares from sums relative to `top`: those from the rounded logarithm are off by it.
    const float of_n = std::exp(n - top);
    float total = of_n;
    for (std::int64_t k = first; k < last; ++k) total += std::exp(p.S[place(k)] - top);
    loss += p.soft * (top + std::log(total) - p.u[i]);
    const float share = p.soft / total;
    dn += share * of_n;
    for (std::int64_t k = first; k < last; ++k) {
      out.dS[place(k)] += share * std::exp(p.S[place(k)] - top);
    }
  }
  out.losses[i] = loss;
  out.dn[i] = dn;
}

// A pair belongs to one row, so no two threads add to the same dS.
inline void mixed_rows(const RowProblem& p, const RowLosses& out, int threads) {
  static_cast<void>(threads);  // unused without OpenMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t i = 0; i < p.rows; ++i) mixed_row(p, out, i);
}

// Share of the rounds in which each positive was drawn, counted in `weights` itself: integers
// up to 2^24 are exact in float32.
inline void drawn_weights(const std::int32_t* random, const std::int64_t* offsets,
                          std::int64_t rounds, std::int64_t rows, std::int64_t pairs,
                          float* weights) {
  std::fill_n(weights, pairs, 0.0f);
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t count = offsets[i + 1] - offsets[i];
      if (count == 0) continue;
      weights[offsets[i] + ((random[round * rows + i] * count) >> 31)] += 1.0f;
    }
  }
  for (std::int64_t k = 0; k < pairs; ++k) weights[k] /= static_cast<float>(rounds);
}

}  // namespace mxm
