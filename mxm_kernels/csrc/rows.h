// The list of rows as a formula takes it; backends/interface.py says what the arrays are.

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace mxm {

// Those of core/formulas.py, which defines them.
enum class Formula { kInfoNce, kSupconOut, kSupconIn, kDecoupled, kDebiased, kLogsumexp, kSoft };

constexpr const char* kFormulas[] = {"info_nce", "supcon_out", "supcon_in", "decoupled",
                                     "debiased", "logsumexp",  "soft"};

// Throws std::invalid_argument for a name that is not among them.
inline Formula formula_of(const std::string& name) {
  int number = 0;
  for (const char* const one : kFormulas) {
    if (name == one) return static_cast<Formula>(number);
    ++number;
  }
  throw std::invalid_argument("no formula " + name);
}

struct RowList {
  std::int64_t rows;
  std::int64_t positives;
  const float* n;                // (rows,) log-sum-exp over the negatives
  const float* S;                // (positives,) sorted by row
  const float* u;                // (rows,) the teacher's average, null where it is not read
  const float* parameter;        // () or (rows,), null where the formula has none
  const float* neg_sum;          // (rows,) sum of S over the row, null where nothing is smoothed
  const float* pair_weights;     // (positives,), null where the formula weighs no positive
  const float* hard_weights;     // (rows,) factors of the losses by the formula
  const float* soft_weights;     // (rows,) factors of the soft losses
  const float* num_negatives;    // (rows,), null where it is not read
  const std::int64_t* offsets;   // (rows + 1,)
  std::int64_t parameter_stride; // 0 for one parameter of all rows
  int threads;
};

struct RowFormula {
  Formula formula;
  float constant;
  float hard;  // factor of the losses by the formula
  float soft;  // factor of the soft losses
  float smoothing;  // label smoothing e
};

// What is computed: the losses with their factors, and their derivatives.
struct RowLosses {
  float* losses;        // (rows,)
  float* by_n;          // (rows,)
  float* by_S;          // (positives,)
  float* by_parameter;  // (rows,), null where the formula has none
  float* by_neg_sum;    // (rows,), null where nothing is smoothed
};

}  // namespace mxm
