// The sums of a chunk with an exponential for each side, and its maxima and plain sums.

#pragma once

#include <algorithm>

#include "chunk.h"
#include "told_chunk.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

enum class Of { kNegatives, kRemoved, kTargets };  // S over both, or T

// Logits, kNothing where the row, or the column, has none.
struct Logits {
  Floats row;
  Floats cols;
};

template <Of kOf>
inline Logits plain_logits(const Chunk& chunk, int i, int j) {
  constexpr bool kStudent = kOf == Of::kNegatives;
  const Floats product = load((kStudent ? chunk.student : chunk.teacher) + chunk.at(i, j));
  const Floats value = logit(product, kStudent ? chunk.scale : chunk.teacher_scale);
  const Ints absent = kStudent ? chunk.hidden(i, j) : chunk.outside(j);
  const Floats present = absent ? fill(kNothing) : value;
  return {present, present};
}

template <Of kOf>
inline Logits told_logits(const Chunk& chunk, int i, int j) {
  const Floats nothing = fill(kNothing);
  const Ints outside = chunk.outside(j);
  if (kOf == Of::kTargets) {
    const Floats present = outside ? nothing : teacher_logits(chunk, i, j);
    return {present, present};
  }
  const Pairs pair = pairs(chunk, i, j, outside);
  if (kOf == Of::kRemoved) {
    return {pair.out_row ? pair.S : nothing, pair.out_cols ? pair.S : nothing};
  }
  return {pair.row ? pair.S : nothing, pair.cols ? pair.S : nothing};
}

template <Of kOf, bool kTold>
inline Logits logits(const Chunk& chunk, int i, int j) {
  return kTold ? told_logits<kOf>(chunk, i, j) : plain_logits<kOf>(chunk, i, j);
}

// The maximum of each row and column.
template <Of kOf, bool kTold>
void find_maxima(const Chunk& chunk, float* rows, float* cols) {
  std::fill_n(cols, padded(chunk.cols), kNothing);
  for (int i = 0; i < chunk.rows; ++i) {
    Floats top = fill(kNothing);
    for (int j = 0; j < chunk.cols; j += kLanes) {
      const Logits value = logits<kOf, kTold>(chunk, i, j);
      top = maximum(top, value.row);
      store(cols + j, maximum(load(cols + j), value.cols));
    }
    rows[i] = largest(top);
  }
}

enum class Weighed { kNot, kStudent, kTeacher };

// What T is weighted by: products, or with rules logits.
template <Weighed kBy, bool kTold>
inline Floats weights(const Chunk& chunk, int i, int j) {
  constexpr bool kTeacher = kBy == Weighed::kTeacher;
  const Floats product = load((kTeacher ? chunk.teacher : chunk.student) + chunk.at(i, j));
  if (!kTold) return product;
  return kTeacher ? teacher_logits(chunk, i, j)
                  : logit(product, chunk.scale) + offsets(chunk.row_rules, i, chunk.col_rules, j);
}

// The sums of S, or of T with its weights, relative to the maximum of each row and column.
template <Of kOf, Weighed kBy, bool kTold>
void add_apart(const Chunk& chunk, Sums<kStrip>& rows, Sums<kChunk>& cols) {
  find_maxima<kOf, kTold>(chunk, rows.top, cols.top);
  cols.clear(padded(chunk.cols));
  for (int i = 0; i < chunk.rows; ++i) {
    Floats total{}, weighted{};
    for (int j = 0; j < chunk.cols; j += kLanes) {
      const Logits value = logits<kOf, kTold>(chunk, i, j);
      const Floats row =
          value.row == kNothing ? Floats{} : exponential(value.row - rows.top[i]);
      const Floats col =
          value.cols == kNothing ? Floats{} : exponential(value.cols - load(cols.top + j));
      total += row;
      store(cols.total + j, load(cols.total + j) + col);
      if (kBy == Weighed::kNot) continue;
      const Floats weight = weights<kBy, kTold>(chunk, i, j);
      const Floats inside = chunk.outside(j) ? Floats{} : weight;
      weighted += row * inside;
      store(cols.weighted + j, load(cols.weighted + j) + col * inside);
    }
    rows.total[i] = sum(total);
    rows.weighted[i] = sum(weighted);
  }
}

// Negatives' products, or with rules logits, 0 elsewhere.
template <bool kTold>
inline Logits negatives(const Chunk& chunk, int i, int j) {
  if (kTold) {
    const Pairs pair = pairs(chunk, i, j, chunk.outside(j));
    return {pair.row ? pair.S : Floats{}, pair.cols ? pair.S : Floats{}};
  }
  const Floats product = load(chunk.student + chunk.at(i, j));
  const Floats negative = chunk.hidden(i, j) ? Floats{} : product;
  return {negative, negative};
}

// Adds them to the sums of their rows, in double, and gives those of the columns.
template <bool kTold>
void add_products(const Chunk& chunk, double* rows, float* cols) {
  std::fill_n(cols, padded(chunk.cols), 0.0f);
  for (int i = 0; i < chunk.rows; ++i) {
    Floats total{};
    for (int j = 0; j < chunk.cols; j += kLanes) {
      const Logits negative = negatives<kTold>(chunk, i, j);
      total += negative.row;
      store(cols + j, load(cols + j) + negative.cols);
    }
    rows[i] += sum(total);
  }
}

}  // namespace MXM_LEVEL
}  // namespace mxm
