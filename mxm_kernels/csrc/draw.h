// The draw of positives; backends/draws.py is its definition.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "passes.h"
#include "threads.h"

namespace mxm {

// Number `count` of SplitMix64 from `seed`.
inline std::uint64_t split_mix(std::uint64_t seed, std::uint64_t count) {
  std::uint64_t z = seed + count * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// The rows of which positives are drawn.
struct DrawnRows {
  const std::int64_t* offsets;  // (rows + 1,)
  std::int64_t rows;
  float* weights;  // (offsets[rows],) out
};

// Share of the rounds in which each positive was drawn, counted in `weights` itself: integers
// up to 2^24 are exact in float32. A positive belongs to one row, so to one thread. The caller's
// thread asks `interrupted`, after every so many draws.
inline void drawn_weights(std::uint64_t seed, const DrawnRows& drawn, std::int64_t rounds,
                          int threads, Interrupted interrupted) {
  constexpr std::int64_t kDraws = 1 << 20;
  static_cast<void>(threads);  // unused without OpenMP
  std::atomic<bool> stop{false};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t i = 0; i < drawn.rows; ++i) {
    if (stop.load(std::memory_order_relaxed)) continue;
    const bool asks = i * rounds / kDraws != (i + 1) * rounds / kDraws;
    if (asks && thread_number() == 0 && interrupted()) stop.store(true);
    const std::uint64_t count = drawn.offsets[i + 1] - drawn.offsets[i];
    float* const weights = drawn.weights + drawn.offsets[i];
    std::fill_n(weights, count, 0.0f);
    if (count == 0) continue;
    for (std::int64_t round = 0; round < rounds; round += 2) {
      const std::uint64_t number = split_mix(seed, round / 2 * drawn.rows + i + 1);
      weights[((number & 0xFFFFFFFFu) * count) >> 32] += 1.0f;
      if (round + 1 < rounds) weights[((number >> 32) * count) >> 32] += 1.0f;
    }
    for (std::uint64_t k = 0; k < count; ++k) weights[k] /= static_cast<float>(rounds);
  }
}

}  // namespace mxm
