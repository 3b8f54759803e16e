// Both passes for bfloat16 features where the CPU multiplies those, products and sweep in one call.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "passes.h"

namespace mxm {

// Features as bits of bfloat16, rows one after the other.
struct Features {
  const std::uint16_t* x = nullptr;          // (M, D)
  const std::uint16_t* y = nullptr;          // (N, D)
  const std::uint16_t* teacher_x = nullptr;  // (M, E), null without a teacher
  const std::uint16_t* teacher_y = nullptr;  // (N, E)
  std::int64_t D = 0;
  std::int64_t E = 0;
};

struct FeatureGradients {
  std::uint16_t* x = nullptr;  // (M, D), null if it is not wanted
  std::uint16_t* y = nullptr;  // (N, D)
};

// Both return early where `interrupted`, which only the caller's thread asks, says so.
struct Fused {
  const char* unit;
  void (*forward)(Forward& pass, const Features& features, Interrupted interrupted);
  void (*backward)(Backward& pass, const Features& features, const FeatureGradients& gradients,
                   Interrupted interrupted);
};

// Units of this machine that multiply bfloat16 and return float32, best first.
std::vector<std::string> units();

// The passes on a unit. Throws std::invalid_argument for a unit not in units().
const Fused& fused(const std::string& unit);

}  // namespace mxm
