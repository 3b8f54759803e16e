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

// Number `count` of SplitMix64 from `seed`.
inline std::uint64_t split_mix(std::uint64_t seed, std::uint64_t count) {
  std::uint64_t z = seed + count * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// The rows of one side, which are rows `first` .. of all rows and columns.
struct DrawSide {
  const std::int64_t* offsets;  // (rows + 1,)
  std::int64_t first;
  std::int64_t rows;
  float* weights;  // (P,) out
};

// Share of the rounds in which each positive was drawn, counted in `weights` itself: integers
// up to 2^24 are exact in float32. A positive belongs to one row, so to one thread.
inline void drawn_weights(std::uint64_t seed, const DrawSide& side, std::int64_t all,
                          std::int64_t rounds, int threads) {
  static_cast<void>(threads);  // unused without OpenMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t i = 0; i < side.rows; ++i) {
    const std::uint64_t count = side.offsets[i + 1] - side.offsets[i];
    float* const weights = side.weights + side.offsets[i];
    std::fill_n(weights, count, 0.0f);
    if (count == 0) continue;
    for (std::int64_t round = 0; round < rounds; round += 2) {
      const std::uint64_t number = split_mix(seed, round / 2 * all + side.first + i + 1);
      weights[((number & 0xFFFFFFFFu) * count) >> 32] += 1.0f;
      if (round + 1 < rounds) weights[((number >> 32) * count) >> 32] += 1.0f;
    }
    for (std::uint64_t k = 0; k < count; ++k) weights[k] /= static_cast<float>(rounds);
  }
}

}  // namespace mxm
