// What the rules of a plane say of one row and kLanes columns.

#pragma once

#include <cstdint>
#include <limits>

#include "rules.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// Pairs that are no negatives of the row, and those that are none of their columns: only the
// thresholds tell them apart. Of positives it says nothing.
struct Removed {
  Ints row;
  Ints cols;
};

inline Removed removed(const RuleRows& rows, std::int64_t i, const RuleRows& cols, std::int64_t j) {
  constexpr std::int32_t kNone = std::numeric_limits<std::int32_t>::max();  // above every id
  const std::int32_t own = rows.within[i];
  const Ints within = load(cols.within + j);
  const Ints elsewhere = (within != own) & (within >= (own < 0 ? kNone : 0));
  const Ints both = (load(cols.exclude + j) == rows.exclude[i]) | elsewhere;
  return {both, both};
}

// The same with thresholds, for the products of the teacher's features.
inline Removed removed(const RuleRows& rows, std::int64_t i, const RuleRows& cols, std::int64_t j,
                       Floats products) {
  const Removed both = removed(rows, i, cols, j);
  return {both.row | (products > rows.thresholds[i]),
          both.cols | (products > load(cols.thresholds + j))};
}

inline Floats offsets(const RuleRows& rows, std::int64_t i, const RuleRows& cols, std::int64_t j) {
  return load(cols.offsets + j) + rows.offsets[i];
}

inline Floats teacher_offsets(const RuleRows& rows, std::int64_t i, const RuleRows& cols,
                              std::int64_t j) {
  return load(cols.teacher_offsets + j) + rows.teacher_offsets[i];
}

}  // namespace MXM_LEVEL
}  // namespace mxm
