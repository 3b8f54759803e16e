// The running sums of rows and columns.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mxm {

constexpr std::int64_t kPad = 16;  // floats in the widest vector
constexpr int kStrip = 32;         // rows and columns that the forward sweep sums at once
constexpr int kChunk = 512;

inline std::int64_t padded(std::int64_t length) { return (length + kPad - 1) / kPad * kPad; }

// A running log-sum-exp that holds nothing yet has this maximum. It is finite, so that
// differences of two of them are 0 and not NaN, and exp(kNothing - x) is 0 for every logit x.
constexpr float kNothing = -1e38f;

// Online log-sum-exp of several rows or columns: reference, sum and weighted sum of each.
// The reference is near the maximum, not always equal to it.
struct Running {
  explicit Running(std::int64_t length, bool weighs = false)
      : top(length, kNothing), total(length, 0.0f), weighted(weighs ? length : 0, 0.0f) {}

  void clear(std::int64_t length) {
    if (top.empty()) return;
    std::fill_n(top.begin(), length, kNothing);
    std::fill_n(total.begin(), length, 0.0f);
    if (!weighted.empty()) std::fill_n(weighted.begin(), length, 0.0f);
  }

  std::vector<float> top;
  std::vector<float> total;
  std::vector<float> weighted;
};

// Running statistics of S over the negatives, and of T, by which the products of S, not yet
// scaled, are weighted. For label smoothing the sum of the products of S over the negatives, and for
// diagnostics the maximum of S, and T weighted by its own products. Where pairs are removed, the number
// of negatives that remain, and beside T the sums of S over what is removed. With rules, logits take
// the place of products.
struct Statistics {
  Statistics(std::int64_t length, bool has_soft, bool diagnostics, bool neg_sum, bool removes)
      : S(length),
        T(has_soft ? length : 0, has_soft),
        neg_sum(neg_sum ? length : 0, 0.0),
        hardest(diagnostics ? length : 0, kNothing),
        self_weighted(has_soft && diagnostics ? length : 0, has_soft && diagnostics),
        removed(has_soft && removes ? length : 0),
        negatives(removes ? length : 0, 0.0f) {}

  void clear(std::int64_t length) {
    S.clear(length);
    T.clear(length);
    if (!neg_sum.empty()) std::fill_n(neg_sum.begin(), length, 0.0);
    if (!hardest.empty()) std::fill_n(hardest.begin(), length, kNothing);
    self_weighted.clear(length);
    removed.clear(length);
    if (!negatives.empty()) std::fill_n(negatives.begin(), length, 0.0f);
  }

  Running S;
  Running T;
  std::vector<double> neg_sum;
  std::vector<float> hardest;
  Running self_weighted;
  Running removed;
  std::vector<float> negatives;  // whole numbers
};

// Sums of the columns of a tile, those of every strip apart: they are merged strip after strip, so
// that neither the cut of the plane into tiles nor the number of threads changes a bit.
struct StripSums {
  enum Part { kTop, kTotal, kNegSum, kTeacherTop, kTeacherTotal, kWeighted, kHardest, kSelfTop,
              kSelfTotal, kSelfWeighted, kNegatives, kRemovedTop, kRemovedTotal, kParts };

  void resize(std::int64_t strips, std::int64_t cols, int parts) {
    width = padded(cols);
    this->parts = parts;
    if (numbers.size() < static_cast<std::size_t>(strips * parts * width)) {
      numbers.resize(strips * parts * width);
    }
  }
  float* at(std::int64_t strip, int part) { return numbers.data() + (strip * parts + part) * width; }

  std::int64_t width = 0;
  int parts = 0;
  std::vector<float> numbers;
};

}  // namespace mxm
