// The sweeps, compiled once for every level of instruction set, and the choice among them.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "passes.h"
#include "rows.h"

namespace mxm {

struct Kernels {
  const char* level;
  void (*forward_tile)(Forward& pass, const Tile& tile);
  void (*finish)(const Running& running, float scale, float* logsumexp, float* average,
                 std::int64_t length);
  void (*prepare)(Backward& pass);
  void (*backward_tile)(Backward& pass, const Tile& tile);
  void (*sigmoid_forward_tile)(SigmoidForward& pass, const Tile& tile);
  void (*sigmoid_backward_tile)(SigmoidBackward& pass, const Tile& tile);
  void (*sigmoid_loss_tile)(SigmoidLoss& pass, const Tile& tile);
  void (*row_losses)(const RowList& list, const RowFormula& formula, const RowLosses& made);
  void (*exponential)(const float* from, float* to, std::int64_t length);
  void (*softplus)(const float* from, float* to, std::int64_t length);
};

// Levels that this machine can run, best first.
std::vector<std::string> levels();

// The kernels of a level. Throws std::invalid_argument for a level not in levels().
const Kernels& kernels(const std::string& level);

}  // namespace mxm
