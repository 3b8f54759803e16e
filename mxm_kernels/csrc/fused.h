// Both passes for bfloat16 features on the matrix unit, products and sweep in one call.

#pragma once

#include <cstdint>

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

// Whether the machine has the unit and the system lets this process use it.
bool has_matrix_unit();

namespace amx {
void forward(Forward& pass, const Features& features);
void backward(Backward& pass, const Features& features, const FeatureGradients& gradients);
}  // namespace amx

}  // namespace mxm
