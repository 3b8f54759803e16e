// Products of packed bfloat16 tiles by AVX-512's dot product of pairs, vdpbf16ps.

#pragma once

#include "bfloat16.h"

namespace mxm {
namespace MXM_LEVEL {

class Unit {};  // has no state to set up

// Rows whose sums stay in registers, beside two vectors of B: 16 of the 32 are sums, more than
// the 6 that hide the latency of one.
constexpr int kRowsHeld = 8;

// C[8 x 32] = A B, or += with `add`, of rows of A that are `row_bytes` apart.
inline void multiply_rows(const char* rows, std::int64_t row_bytes, std::int64_t step_bytes,
                          const Half* right, std::int64_t depth, float* C, std::int64_t stride,
                          bool add) {
  const Half* next = right + depth * kTile;
  __m512 low[kRowsHeld], high[kRowsHeld];
  for (int r = 0; r < kRowsHeld; ++r) {
    low[r] = add ? _mm512_loadu_ps(C + r * stride) : _mm512_setzero_ps();
    high[r] = add ? _mm512_loadu_ps(C + r * stride + kTileRows) : _mm512_setzero_ps();
  }
  for (std::int64_t k = 0; k < depth; ++k, rows += step_bytes) {
    for (int pair = 0; pair < kTileDepth / 2; ++pair, right += kTileDepth, next += kTileDepth) {
      const __m512bh first = (__m512bh)_mm512_load_si512(right);
      const __m512bh second = (__m512bh)_mm512_load_si512(next);
      for (int r = 0; r < kRowsHeld; ++r) {
        std::int32_t both;
        std::memcpy(&both, rows + r * row_bytes + pair * sizeof both, sizeof both);
        const __m512bh left = (__m512bh)_mm512_set1_epi32(both);
        low[r] = _mm512_dpbf16_ps(low[r], left, first);
        high[r] = _mm512_dpbf16_ps(high[r], left, second);
      }
    }
  }
  for (int r = 0; r < kRowsHeld; ++r) {
    _mm512_storeu_ps(C + r * stride, low[r]);
    _mm512_storeu_ps(C + r * stride + kTileRows, high[r]);
  }
}

// C[32 x 32] = A B, or += with `add`: `right` are the tiles of 16 columns over `depth`
// tiles, those of the next 16 follow.
inline void multiply_block(const Left& left, const Half* right, std::int64_t depth, float* C,
                           std::int64_t stride, bool add) {
  const std::int64_t step = left.step * sizeof(Half);
  for (int row = 0; row < kBlock; row += kRowsHeld) {
    const Half* const half = row < kTileRows ? left.rows : left.more;
    const char* const rows = reinterpret_cast<const char*>(half) + row % kTileRows * left.row_bytes;
    multiply_rows(rows, left.row_bytes, step, right, depth, C + row * stride, stride, add);
  }
}

}  // namespace MXM_LEVEL
}  // namespace mxm
