// The losses of the rows and their derivatives. core/formulas.py defines the formulas; its PyTorch
// takes a dozen calls each, which cost a tenth to a third of a step of 240 x 200.

#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "rows.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// The positives of one row.
struct Segment {
  const RowList& list;
  std::int64_t first;
  std::int64_t count;

  // What the list has from positive k on. The lanes that are not `inside` are of other rows.
  Floats at(const float* values, std::int64_t k) const {
    return load(values + first + k, list.positives - first - k);
  }
  Ints inside(std::int64_t k) const {
    return lane_numbers() < static_cast<std::int32_t>(std::min<std::int64_t>(count - k, kLanes));
  }
};

// Log-sum-exp p = top + log(total) over the positives of a row; without one top is -inf.
struct Sum {
  float top = -INFINITY;
  float total = 1;
};

inline Sum sum_of(const Segment& row) {
  Sum made;
  if (row.count == 0) return made;
  Floats top = fill(-INFINITY), total{};
  for (std::int64_t k = 0; k < row.count; k += kLanes) {
    top = row.inside(k) ? maximum(row.at(row.list.S, k), top) : top;  // NaN shows in the total
  }
  made.top = largest(top);
  for (std::int64_t k = 0; k < row.count; k += kLanes) {
    total += row.inside(k) ? exponential(row.at(row.list.S, k) - made.top) : Floats{};
  }
  made.total = sum(total);
  return made;
}

// Adds by_p times the derivative of p to the derivatives by the positives.
inline void add_softmax(const Segment& row, const Sum& p, float by_p, float* by_S) {
  const float factor = by_p / p.total;
  for (std::int64_t k = 0; k < row.count; k += kLanes) {
    const Floats share = exponential(row.at(row.list.S, k) - p.top) * factor;
    store(by_S + k, load(by_S + k, row.count - k) + share, row.count - k);
  }
}

// The log-sum-exp of the whole row, log(exp(n) + exp(p)), and its derivatives by n and by p.
struct Whole {
  float margin;  // n - p
  float lse;
  float by_n;
  float by_p;
  float excess;  // lse - p
};

inline Whole whole_of(float n, const Sum& p) {
  const float margin = n - p.top - std::log(p.total);
  const float e = std::exp(-std::abs(margin)), more = std::log1p(e);
  const float greater = 1 / (1 + e), less = e / (1 + e);
  if (margin > 0) return {margin, n + more, greater, less, margin + more};
  return {margin, p.top + std::log(p.total) + more, less, greater, more};
}

// A loss of every positive against a level, and its derivative by the level.
struct Term {
  float loss = 0;
  float by_level = 0;
};

// The sum of factor w_k f(level - S_k), f the softplus or the difference itself. Stores the
// derivatives by the positives.
template <bool kSoftplus>
inline Term against(float level, float factor, const Segment& row, float* by_S) {
  Floats loss{}, by_level{};
  for (std::int64_t k = 0; k < row.count; k += kLanes) {
    const Ints inside = row.inside(k);
    const Floats weight = row.at(row.list.pair_weights, k) * factor;
    const Floats margin = level - row.at(row.list.S, k);
    const Floats term = kSoftplus ? softplus(margin) : margin;
    const Floats slope = kSoftplus ? sigmoid(margin) : margin * 0.0f + 1.0f;  // NaN times 0 is NaN
    const Floats pull = inside ? weight * slope : Floats{};
    loss += inside ? weight * term : Floats{};
    by_level += pull;
    store(by_S + k, -pull, row.count - k);
  }
  return {sum(loss), sum(by_level)};
}

// n without the positives expected among the negatives, no less than a floor, and its
// derivatives. That by n is 0 on the floor, and nowhere else.
struct Level {
  float value;
  float by_n = 0;
  float by_p = 0;
};

inline Level debiased(float n, float margin, std::int64_t count, float negatives, float scale,
                      float prior) {
  if (n == -INFINITY) return {n};
  const float share = std::log(prior * negatives / static_cast<float>(std::max<std::int64_t>(count, 1)));
  const float taken = std::exp(share - margin), floor = std::log(negatives) - scale;
  const float level = n + std::log1p(-taken) - std::log1p(-prior);
  if (taken >= 1 || level <= floor) return {floor};
  return {level, 1 / (1 - taken), -taken / (1 - taken)};
}

// Adds of_weight w_k + beside to the derivatives by the positives; there may be no weights.
inline void add_weights(const Segment& row, float of_weight, float beside, float* by_S) {
  const float* const weights = row.list.pair_weights;
  for (std::int64_t k = 0; k < row.count; k += kLanes) {
    const Floats weighed = weights == nullptr ? Floats{} : row.at(weights, k) * of_weight;
    const Floats more = weighed + beside;
    store(by_S + k, load(by_S + k, row.count - k) + more, row.count - k);
  }
}

// What label smoothing adds to the loss of a row, over e, and its derivative by the sum of S over the
// negatives.
struct Smoothing {
  float loss;
  float by_neg_sum;
};

// Adds `factor` times its derivatives by the positives. Where the formula has the positives in one
// logarithm p, that is yet to be added.
inline Smoothing smoothing_of(const Segment& row, Formula formula, float negatives, float neg_sum,
                              float factor, float* by_S) {
  const bool joint = formula == Formula::kSupconIn;
  Floats positives{}, weighed{}, weight{};
  for (std::int64_t k = 0; k < row.count; k += kLanes) {
    const Ints inside = row.inside(k);
    const Floats S = row.at(row.list.S, k);
    positives += inside ? S : Floats{};
    if (joint) continue;
    const Floats w = row.at(row.list.pair_weights, k);
    weighed += inside ? w * S : Floats{};
    weight += inside ? w : Floats{};
  }
  const float whole = joint ? (row.count > 0 ? 1.0f : 0.0f) : sum(weight);
  if (joint || formula == Formula::kSupconOut) {  // from the mean of the row
    const float pull = whole / std::max(negatives + static_cast<float>(row.count), 1.0f);
    add_weights(row, factor, -factor * pull, by_S);
    return {sum(weighed) - pull * (neg_sum + sum(positives)), -pull};
  }
  // From the mean of the negatives; where a positive is in the denominator, of it too.
  const bool decoupled = formula == Formula::kDecoupled;
  const float some = std::min(negatives, 1.0f);
  const float inverse = some / (decoupled ? std::max(negatives, 1.0f) : negatives + 1);
  const float share = decoupled ? some : negatives * inverse, pull = whole * inverse;
  add_weights(row, factor * share, 0, by_S);
  return {share * sum(weighed) - pull * neg_sum, -pull};
}

// The loss of row r and its derivatives.
inline void row_loss(const RowList& list, const RowFormula& formula, std::int64_t r,
                     const RowLosses& made) {
  const Segment row{list, list.offsets[r], list.offsets[r + 1] - list.offsets[r]};
  float* const by_S = made.by_S + row.first;
  const float n = list.n[r], hard = formula.hard * list.hard_weights[r];
  const bool alone = n == -INFINITY;
  // What the row's loss may not read: NaN shows, and -inf does not.
  const float unread = row.count == 0 && !alone ? n * 0 : 0;
  float loss = unread, by_n = unread, by_p = 0, by_lse = 0, by_parameter = 0;
  const Sum p = sum_of(row);
  const Whole whole = whole_of(n, p);
  Term term;
  std::fill_n(by_S, row.count, 0.0f);
  switch (formula.formula) {
    case Formula::kInfoNce:
      term = against<true>(n, hard, row, by_S);
      by_n += term.by_level;
      break;
    case Formula::kSupconOut:
      term = against<false>(whole.lse, hard, row, by_S);
      by_lse += term.by_level;
      break;
    case Formula::kSupconIn:
      if (row.count == 0) break;
      loss += hard * whole.excess;
      by_n += hard * whole.by_n;
      by_p -= hard * whole.by_n;
      break;
    case Formula::kDecoupled:  // without a negative the loss is 0
      term = alone ? against<false>(0, hard * 0, row, by_S) : against<false>(n, hard, row, by_S);
      by_n += term.by_level;
      break;
    case Formula::kDebiased: {
      const float scale = list.parameter[r * list.parameter_stride];
      const Level level = debiased(n, whole.margin, row.count, list.num_negatives[r], scale, formula.constant);
      term = against<true>(level.value, hard, row, by_S);
      by_n += term.by_level * level.by_n;
      by_p += term.by_level * level.by_p;
      by_parameter = level.by_n == 0 ? -term.by_level : 0;
      break;
    }
    case Formula::kLogsumexp:
      loss += hard * whole.lse;
      by_lse += hard;
      break;
    case Formula::kSoft:
      loss += hard * (whole.lse - list.u[r]);
      by_lse += hard;
      break;
  }
  loss += term.loss;
  if (list.neg_sum != nullptr) {
    const float e = formula.smoothing * hard;
    const Smoothing more =
        smoothing_of(row, formula.formula, list.num_negatives[r], list.neg_sum[r], e, by_S);
    loss += e * more.loss;
    made.by_neg_sum[r] = e * more.by_neg_sum;
    if (formula.formula == Formula::kSupconIn && row.count > 0) {
      loss += e * (p.top + std::log(p.total));
      by_p += e;
    }
  }
  if (formula.soft != 0) {
    const float soft = formula.soft * list.soft_weights[r];
    loss += soft * (whole.lse - list.u[r]);
    by_lse += soft;
  }
  if (by_lse != 0) {  // NaN is
    by_n += by_lse * whole.by_n;
    by_p += by_lse * whole.by_p;
  }
  if (by_p != 0) add_softmax(row, p, by_p, by_S);
  made.losses[r] = loss;
  made.by_n[r] = by_n;
  if (made.by_parameter != nullptr) made.by_parameter[r] = by_parameter;
}

inline void row_losses(const RowList& list, const RowFormula& formula, const RowLosses& made) {
#pragma omp parallel for num_threads(list.threads) schedule(static) if (list.threads > 1)
  for (std::int64_t r = 0; r < list.rows; ++r) row_loss(list, formula, r, made);
}

}  // namespace MXM_LEVEL
}  // namespace mxm
