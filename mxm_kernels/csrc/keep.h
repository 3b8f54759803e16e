// Products of a chunk in 16-bit fixed point, past the caches: nobody reads them before backward.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "chunk.h"
#include "passes.h"
#include "vector.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace mxm {
namespace MXM_LEVEL {

// Two vectors at a multiple of 16 bytes. Whole lines follow each other, so they need not be read.
inline void stream(std::int16_t* to, Shorts low, Shorts high) {
  std::int16_t both[2 * kLanes];
  std::memcpy(both, &low, sizeof low);
  std::memcpy(both + kLanes, &high, sizeof high);
#ifdef __SSE2__
  for (int k = 0; k < 2 * kLanes; k += 8) {
    __m128i value;
    std::memcpy(&value, both + k, sizeof value);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + k), value);
  }
#else
  std::memcpy(to, both, sizeof both);
#endif
}

// Streamed stores are done before other threads go on.
inline void finish_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

inline Floats present(const float* from, std::int64_t count) {
  return count > 0 ? load(from, count) : Floats{};
}

// The chunk of `products` at (row, col) of the plane, and zeros up to the stride after the last
// column, so that the same features leave the same bits.
inline void keep_chunk(const Keep& keep, const Chunk& chunk, const float* products,
                       std::int64_t row, std::int64_t col, std::int64_t last) {
  const std::int64_t end = col + chunk.cols == last ? keep.stride - col : chunk.cols;
  for (int i = 0; i < chunk.rows; ++i) {
    const float* const from = products + i * chunk.stride;
    std::int16_t* const to = keep.to + (row + i) * keep.stride + col;
    const float unit = keep.rows[row + i];
    for (std::int64_t j = 0; j < end; j += 2 * kLanes) {
      Shorts both[2];
      for (int half = 0; half < 2; ++half) {
        const std::int64_t k = j + half * kLanes, count = chunk.cols - k;
        both[half] = fixed_point(present(from + k, count) * unit *
                                 present(keep.cols + col + k, count));
      }
      stream(to + j, both[0], both[1]);
    }
  }
}

}  // namespace MXM_LEVEL
}  // namespace mxm
