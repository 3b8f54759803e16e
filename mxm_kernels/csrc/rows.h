// The operators over rows and pairs; backends/pairs.py is their definition.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace mxm {

// Losses of the positives of a row.
enum class Form { kNone, kMasked, kUnmasked, kDecoupled, kJoint, kWhole, kDebiased };

inline Form form_of(const std::string& name) {
  if (name == "none") return Form::kNone;
  if (name == "masked") return Form::kMasked;
  if (name == "unmasked") return Form::kUnmasked;
  if (name == "decoupled") return Form::kDecoupled;
  if (name == "joint") return Form::kJoint;
  if (name == "whole") return Form::kWhole;
  if (name == "debiased") return Form::kDebiased;
  throw std::invalid_argument("no form of rows: " + name);
}

struct RowProblem {
  const float* n = nullptr;                // (rows,)
  const float* S = nullptr;                // (P,)
  const float* u = nullptr;                // (rows,), null where the soft loss has no share
  const float* weights = nullptr;          // (P,), not read where the form weighs no positive
  const std::int64_t* offsets = nullptr;   // (rows + 1,)
  const float* hard_weights = nullptr;     // (rows,) of the loss of the positives, null: 1 each
  const float* soft_weights = nullptr;     // (rows,) of the soft loss, null: 1 each
  const std::int64_t* slots = nullptr;     // (P,) where S and dS of each pair are; null: in order
  std::int64_t rows = 0;
  Form form = Form::kMasked;
  float hard = 1;
  float soft = 0;
  float scale = 0;                         // these three for kDebiased
  std::int64_t columns = 0;
  float prior = 0;

  float hard_of(std::int64_t i) const { return hard_weights == nullptr ? hard : hard * hard_weights[i]; }
  float soft_of(std::int64_t i) const { return soft_weights == nullptr ? soft : soft * soft_weights[i]; }
};

struct RowLosses {
  float* losses;  // (rows,)
  float* dn;      // (rows,)
  float* dS;      // (P,), added to
  float* dscale;  // (rows,), of kDebiased
};

inline float softplus_of(float x) {
  return std::max(x, 0.0f) + std::log1p(std::exp(-std::fabs(x)));  // of the smaller side
}

inline float sigmoid_of(float x) {
  const float e = std::exp(-std::fabs(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

// The positives of a row together. A feature that is not finite makes S of its positives infinite
// or NaN.
struct Positives {
  const RowProblem& p;
  std::int64_t first, last;
  float top = -INFINITY;  // the greatest
  float total = 0;        // sum of exp(S - top)

  Positives(const RowProblem& problem, std::int64_t i)
      : p(problem), first(p.offsets[i]), last(p.offsets[i + 1]) {}

  std::int64_t place(std::int64_t k) const { return p.slots == nullptr ? k : p.slots[k]; }
  float value(std::int64_t k) const {
    const float S = p.S[place(k)];
    return std::isinf(S) ? NAN : S;
  }
  void add_up() {
    for (std::int64_t k = first; k < last; ++k) top = std::max(top, value(k));
    for (std::int64_t k = first; k < last; ++k) total += std::exp(value(k) - top);
  }
};

// Derivatives of the loss of a row by its n, by p, the log-sum-exp of its positives, and by the
// scale beside that by S.
struct Slopes {
  float n = 0;
  float p = 0;
  float scale = 0;
};

// What n is without the positives expected among the negatives: the level of `kDebiased`.
inline float debiased_row(const Positives& all, std::int64_t i, float margin, Slopes& slopes) {
  const RowProblem& p = all.p;
  const float count = static_cast<float>(all.last - all.first);
  const float negatives = static_cast<float>(p.columns - (all.last - all.first));
  const float share = p.prior * negatives / std::max(count, 1.0f);
  const float taken = std::exp(std::log(share) - margin);  // NaN without a negative
  const float n = p.n[i], free = n + std::log1p(-taken) - std::log1p(-p.prior);
  const float floor = n == -INFINITY ? n : std::log(negatives) - p.scale;
  const bool on_floor = taken >= 1 || free <= floor || n == -INFINITY;
  const float level = on_floor ? floor : free;
  float pull = 0;
  for (std::int64_t k = all.first; k < all.last; ++k) {
    pull += p.hard_of(i) * p.weights[k] * sigmoid_of(level - all.value(k));
  }
  if (on_floor) {
    slopes.scale -= pull;
  } else {
    slopes.n += pull / (1 - taken);
    slopes.p -= pull / (1 - taken) * taken;
  }
  return level;
}

// What depends on the positives as a whole; returns the level that a form weighs them against.
// From sums relative to `top`: what comes of a rounded log-sum-exp is off by it.
inline float whole_row(const Positives& all, std::int64_t i, float& loss, Slopes& slopes) {
  const RowProblem& p = all.p;
  const float n = p.n[i], log = all.first < all.last ? std::log(all.total) : 0.0f;
  const float margin = (n - all.top) - log;  // n - p
  const float lse = (margin > 0 ? n : all.top + log) + softplus_of(-std::fabs(margin));
  const float hard = p.hard_of(i), soft = p.soft_of(i);
  float by_lse = soft;
  if (p.soft != 0) loss += soft * (lse - p.u[i]);
  if (p.form == Form::kWhole) {
    loss += hard * lse;
    by_lse += hard;
  }
  if (p.form == Form::kUnmasked) {
    for (std::int64_t k = all.first; k < all.last; ++k) by_lse += hard * p.weights[k];
  }
  slopes.n += by_lse * sigmoid_of(margin);
  slopes.p += by_lse * sigmoid_of(-margin);
  if (p.form == Form::kJoint && all.first < all.last) {
    const float pull = hard * sigmoid_of(margin);
    loss += hard * softplus_of(margin);
    slopes.n += pull;
    slopes.p -= pull;
  }
  if (p.form == Form::kDebiased) return debiased_row(all, i, margin, slopes);
  return p.form == Form::kUnmasked ? lse : n;
}

// Where a row has no positive, all its S may be -inf and drop out of every other sum, but then its
// own n is -inf.
inline void mixed_row(const RowProblem& p, const RowLosses& out, std::int64_t i) {
  Positives all(p, i);
  float loss = all.first < all.last || std::isfinite(p.n[i]) ? 0 : NAN, level = p.n[i];
  Slopes slopes{loss, loss};
  const float hard = p.hard_of(i);
  const bool masked = p.form == Form::kMasked || p.form == Form::kDebiased;
  const bool of_n = p.form == Form::kMasked || p.form == Form::kDecoupled;  // the level is n
  const bool weighed = masked || of_n || p.form == Form::kUnmasked;
  const bool whole = p.soft != 0 || (p.form != Form::kNone && !of_n);
  if (whole) {
    all.add_up();
    level = whole_row(all, i, loss, slopes);
  }
  for (std::int64_t k = all.first; k < all.last; ++k) {
    const float S = all.value(k);
    float by_S = whole ? slopes.p * (std::exp(S - all.top) / all.total) : 0.0f;
    if (weighed) {
      const float weight = hard * p.weights[k];
      // A row without a negative is decoupled from nothing.
      const bool lone = !masked && level == -INFINITY;
      const float margin = lone ? S * 0.0f : level - S;
      const float slope = masked ? sigmoid_of(margin) : (lone ? 0.0f : 1.0f) + margin * 0.0f;
      loss += weight * (masked ? softplus_of(margin) : margin);
      if (of_n) slopes.n += weight * slope;
      by_S -= weight * slope;
    }
    out.dS[all.place(k)] += by_S;
  }
  out.losses[i] = loss;
  out.dn[i] = slopes.n;
  if (p.form == Form::kDebiased) out.dscale[i] = slopes.scale;
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
