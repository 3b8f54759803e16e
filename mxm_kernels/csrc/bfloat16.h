// bfloat16 matrices packed for instructions that multiply pairs and add to float32.
//
// Such an instruction takes B as pairs: row k of a packed tile holds (B[2k][n], B[2k+1][n]) for 16
// columns n. "A tile" is 16 rows of 32 numbers of A, or 32 rows of 16 columns of B as 16 rows of
// pairs: both are 1 KiB, and a packed matrix is its tiles one after the other. amx.h and dot.h
// multiply them.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "passes.h"

namespace mxm {
namespace MXM_LEVEL {

using Half = std::uint16_t;  // the bits of a bfloat16

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;  // numbers of the summed dimension in a tile
constexpr int kTile = kTileRows * kTileDepth;
constexpr int kBlock = 2 * kTileRows;  // a product is computed 32 x 32: two tiles by two

inline std::int64_t round_up(std::int64_t length, std::int64_t unit) {
  return (length + unit - 1) / unit * unit;
}

// Memory at a cache line: a tile row that straddles two lines costs twice.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t length = 0)
      : data_(static_cast<T*>(::operator new(length * sizeof(T), std::align_val_t(64)))) {}
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> data_;
};

// 32 rows of A: rows of a matrix as they lie in memory, or two rows of packed tiles.
struct Left {
  const Half* rows;        // the first 16
  const Half* more;        // the other 16
  std::int64_t row_bytes;  // from row to row
  std::int64_t step;       // numbers from one depth of 32 to the next
};

// Transposes 16 x 16 numbers of 32 bits.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int k = 0; k < 16; k += 2) {
    t[k] = _mm512_unpacklo_epi32(r[k], r[k + 1]);
    t[k + 1] = _mm512_unpackhi_epi32(r[k], r[k + 1]);
  }
  for (int k = 0; k < 16; k += 4) {
    r[k] = _mm512_unpacklo_epi64(t[k], t[k + 2]);
    r[k + 1] = _mm512_unpackhi_epi64(t[k], t[k + 2]);
    r[k + 2] = _mm512_unpacklo_epi64(t[k + 1], t[k + 3]);
    r[k + 3] = _mm512_unpackhi_epi64(t[k + 1], t[k + 3]);
  }
  for (int half = 0; half < 16; half += 8) {
    for (int k = 0; k < 4; ++k) {
      t[half + k] = _mm512_shuffle_i32x4(r[half + k], r[half + k + 4], 0x88);
      t[half + k + 4] = _mm512_shuffle_i32x4(r[half + k], r[half + k + 4], 0xDD);
    }
  }
  for (int k = 0; k < 8; ++k) {
    r[k] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0x88);
    r[k + 8] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0xDD);
  }
}

// `count` numbers of a row, the rest of 32 zero.
inline __m512i load_row(const Half* from, std::int64_t count) {
  if (count >= kTileDepth) return _mm512_loadu_si512(from);
  alignas(64) Half row[kTileDepth] = {};
  if (count > 0) std::memcpy(row, from, count * sizeof(Half));
  return _mm512_load_si512(row);
}

// A matrix in memory: `rows` rows of `cols` numbers, one after the other.
struct Matrix {
  const Half* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  __m512i load(std::int64_t i, std::int64_t j) const {
    return load_row(data + i * cols + j, i < rows ? cols - j : 0);
  }
  Matrix part(std::int64_t first, std::int64_t count) const {
    return {data + first * cols, count, cols};
  }
  std::int64_t depth() const { return round_up(cols, kTileDepth) / kTileDepth; }
};

// Tiles of B = m^T for columns 16 p .. 16 p + 16 of B, over all of m's columns.
inline void pack_transposed(const Matrix& m, std::int64_t p, Half* to) {
  for (std::int64_t k = 0; k < m.depth(); ++k, to += kTile) {
    __m512i rows[16];
    for (int n = 0; n < 16; ++n) rows[n] = m.load(p * 16 + n, k * kTileDepth);
    transpose(rows);
    for (int pair = 0; pair < 16; ++pair) _mm512_store_si512(to + pair * 32, rows[pair]);
  }
}

// (low, high) pairs of two halves of a row.
inline __m512i pairs(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// Both halves of two rows as pairs: 16 columns at `to`, the next 16 `step` numbers on.
inline void store_pairs(__m512i even, __m512i odd, Half* to, std::int64_t step) {
  const __m256i low = _mm512_castsi512_si256(even), high = _mm512_extracti64x4_epi64(even, 1);
  _mm512_store_si512(to, pairs(low, _mm512_castsi512_si256(odd)));
  _mm512_store_si512(to + step, pairs(high, _mm512_extracti64x4_epi64(odd, 1)));
}

// Tiles of B = m for columns 32 p .. 32 p + 32, over `depth` tiles of m's rows.
inline void pack_pairs(const Matrix& m, std::int64_t p, std::int64_t depth, Half* to) {
  for (std::int64_t k = 0; k < depth * 16; ++k, to += 32) {
    store_pairs(m.load(2 * k, p * 32), m.load(2 * k + 1, p * 32), to, depth * kTile);
  }
}

// Tiles of A = m^T, rows 32 p .. 32 p + 32 of A, over `depth` tiles of m's rows. Pairs of m's
// rows are transposed as numbers of 32 bits.
inline void pack_columns(const Matrix& m, std::int64_t p, std::int64_t depth, Half* to) {
  for (std::int64_t k = 0; k < depth; ++k, to += kTile) {
    __m512i low[16], high[16];
    for (int pair = 0; pair < 16; ++pair) {
      const __m512i even = m.load(k * 32 + 2 * pair, p * 32);
      const __m512i odd = m.load(k * 32 + 2 * pair + 1, p * 32);
      low[pair] = pairs(_mm512_castsi512_si256(even), _mm512_castsi512_si256(odd));
      high[pair] = pairs(_mm512_extracti64x4_epi64(even, 1), _mm512_extracti64x4_epi64(odd, 1));
    }
    transpose(low);
    transpose(high);
    for (int row = 0; row < 16; ++row) {
      _mm512_store_si512(to + row * 32, low[row]);
      _mm512_store_si512(to + depth * kTile + row * 32, high[row]);
    }
  }
}

inline __m512i rounded(const float* from) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
}

// Rounds 32 rows of `width` numbers, a multiple of 32, to bfloat16: as the tiles of A, and as
// those of B at `pairs_to`, whose next 16 columns are `pairs_step` numbers on.
inline void pack_rounded(const float* from, std::int64_t stride, std::int64_t width, Half* to,
                         Half* pairs_to, std::int64_t pairs_step) {
  const std::int64_t below = width / kTileDepth * kTile;  // the tiles of rows 16 and on
  for (std::int64_t j = 0; j < width; j += kTileDepth) {
    for (std::int64_t row = 0; row < kBlock; row += 2) {
      const __m512i even = rounded(from + row * stride + j);
      const __m512i odd = rounded(from + (row + 1) * stride + j);
      Half* const line = to + row / 16 * below + j / kTileDepth * kTile + row % 16 * 32;
      _mm512_store_si512(line, even);
      _mm512_store_si512(line + 32, odd);
      store_pairs(even, odd, pairs_to + j / 16 * pairs_step + row / 2 * 32, pairs_step);
    }
  }
}

}  // namespace MXM_LEVEL
}  // namespace mxm
