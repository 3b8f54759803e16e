// The sweeps of the sigmoid statistics, sums of softplus(S + b) over the negatives, and of dS, alone
// or with the loss.

#pragma once

#include <algorithm>

#include "backward.h"
#include "forward.h"
#include "passes.h"
#include "positives.h"
#include "threads.h"
#include "vector.h"

namespace mxm {
namespace MXM_LEVEL {

// Logits of S, with their offsets where there are rules, and what is no negative.
struct SigmoidPairs {
  Floats S;
  Ints hidden;
};

template <bool kTold>
inline SigmoidPairs sigmoid_pairs(const Chunk& chunk, int i, int j) {
  const Floats S = load(chunk.student + chunk.at(i, j)) * chunk.scale;
  const Ints hidden = chunk.hidden(i, j);
  if (!kTold) return {S, hidden};
  const RuleRows &rows = chunk.row_rules, &cols = chunk.col_rules;
  return {S + offsets(rows, i, cols, j), hidden | removed(rows, i, cols, j).row};
}

// A chunk is summed in float32, chunks in float64.
template <bool kTold>
inline void sum_sigmoid_strip(SigmoidForward& pass, const Tile& tile, int first, int rows,
                              float* cols) {
  for (std::int64_t j = 0; j < tile.cols; j += kChunk) {
    const Chunk chunk = cut(pass.problem, tile, first, rows, j);
    float* const sums = cols + j;
    std::fill_n(sums, padded(chunk.cols), 0.0f);
    for (int i = 0; i < chunk.rows; ++i) {
      Floats total{};
      for (int k = 0; k < chunk.cols; k += kLanes) {
        const SigmoidPairs pairs = sigmoid_pairs<kTold>(chunk, i, k);
        const Floats term = pairs.hidden ? Floats{} : softplus(pairs.S + pass.bias);
        total += term;
        store(sums + k, load(sums + k) + term);
      }
      pass.rows[tile.row + first + i] += sum(total);
    }
  }
}

template <bool kTold>
inline void sum_sigmoid_tile(SigmoidForward& pass, const Tile& tile) {
  pass.strips.resize((tile.rows + kStrip - 1) / kStrip, tile.cols, 1);
  deal(
      pass.problem.threads, tile,
      [&](std::int64_t strip, int first, int rows) {
        sum_sigmoid_strip<kTold>(pass, tile, first, rows, pass.strips.at(strip, 0));
        gather_positives(pass.problem, pass.positives, tile, first, rows);
      },
      [&](std::int64_t strips, std::int64_t from, std::int64_t to) {
        for (std::int64_t k = 0; k < strips; ++k) {
          const float* const sums = pass.strips.at(k, 0);
          for (std::int64_t j = from; j < to; ++j) pass.cols[tile.col + j] += sums[j];
        }
      });
}

inline void sigmoid_forward_tile(SigmoidForward& pass, const Tile& tile) {
  if (pass.problem.told) return sum_sigmoid_tile<true>(pass, tile);
  return sum_sigmoid_tile<false>(pass, tile);
}

struct SigmoidTotal {
  double loss = 0;
  double scale = 0;
  double bias = 0;
};

// dS of row i of the tile, the positives' own gradient left out; kLoss: the negatives' loss too.
template <bool kLoss, bool kTold>
inline void sweep_sigmoid_row(const SigmoidBackward& pass, const Tile& tile, std::int64_t i,
                              SigmoidTotal& total) {
  const Problem& p = pass.problem;
  const std::int64_t row = tile.row + i;
  const float* const student = tile.student + i * tile.stride;
  float* const to = tile.dS + i * tile.dS_stride;
  const RuleRows rows = p.image_rules.from(row), cols = p.text_rules.from(tile.col);
  Floats loss{}, scale{}, bias{};
  for (std::int64_t j = 0; j < tile.cols; j += kLanes) {
    const Floats product = load(student + j);
    Ints hidden = (load(p.text_groups.data() + tile.col + j) == p.image_groups[row]) |
                  (lane_numbers() >= static_cast<std::int32_t>(tile.cols - j));
    const Floats upstream = load(pass.cols.data() + tile.col + j) + pass.rows[row];
    Floats logit = product * p.scale + pass.bias;
    if (kTold) {
      hidden = hidden | removed(rows, 0, cols, j).row;
      logit += offsets(rows, 0, cols, j);
    }
    const Floats negative = sigmoid(logit) * upstream;
    const Floats dS = hidden ? Floats{} : negative;
    store(to + j, dS);
    if (kLoss) loss += hidden ? Floats{} : softplus(logit) * upstream;
    scale += hidden ? Floats{} : dS * product;
    bias += dS;
  }
  total.loss += sum(loss);
  total.scale += static_cast<double>(sum(scale)) * p.scale;
  total.bias += sum(bias);
}

// Row i of the tile: the negatives, and the positives with their own terms of the loss.
inline void sweep_sigmoid_loss_row(const SigmoidLoss& pass, const Tile& tile, std::int64_t i,
                                   SigmoidTotal& total) {
  const Problem& p = pass.problem;
  each_positive(p, tile, i, [&](std::int64_t slot, std::int64_t j) {
    pass.products[slot] = tile.student[i * tile.stride + j];
  });
  if (p.told) {
    sweep_sigmoid_row<true, true>(pass, tile, i, total);
  } else {
    sweep_sigmoid_row<true, false>(pass, tile, i, total);
  }
  each_positive(p, tile, i, [&](std::int64_t slot, std::int64_t j) {
    const float weight = pass.pair_weights == nullptr
                             ? pass.rows[tile.row + i] + pass.cols[p.pair_texts[slot]]
                             : static_cast<float>(pass.pair_weights[slot] * pass.upstream_scale());
    float S = pass.products[slot] * p.scale;
    const float scaled = S;
    if (p.told) S += p.offset(tile.row + i, tile.col + j);
    const Floats margin = fill(-(S + pass.bias));  // in every lane, for one of them
    const float dS = -weight * sigmoid(margin)[0];
    tile.dS[i * tile.dS_stride + j] = dS;
    total.loss += static_cast<double>(weight) * softplus(margin)[0];
    total.scale += static_cast<double>(dS) * scaled;
    total.bias += dS;
  });
}

// Deals the rows of a tile out to the threads, and adds up what they find. The loss is of each row:
// no bit of it hangs on the heights of the tiles or on the number of threads.
template <class Row>
void sigmoid_gradient_tile(SigmoidBackward& pass, const Tile& tile, Row sweep_row) {
  std::vector<SigmoidTotal> totals(pass.problem.threads);
  ColumnTotals columns(pass, tile.cols);
#pragma omp parallel num_threads(pass.problem.threads)
  {
    const int team = team_size(), thread = thread_number();
    SigmoidTotal total;
    for (std::int64_t i = tile.rows * thread / team; i < tile.rows * (thread + 1) / team; ++i) {
      total.loss = 0;
      sweep_row(i, total);
      if (pass.wants_offsets()) add_totals(pass, tile, i, columns.of(thread));
      if (!pass.losses.empty()) pass.losses[tile.row + i] += total.loss;
    }
    totals[thread] = total;
  }
  for (const SigmoidTotal& total : totals) {
    pass.dscale += total.scale;
    pass.dbias += total.bias;
  }
  columns.add_to(pass, tile.col);
}

inline void sigmoid_backward_tile(SigmoidBackward& pass, const Tile& tile) {
  sigmoid_gradient_tile(pass, tile, [&](std::int64_t i, SigmoidTotal& total) {
    if (pass.problem.told) {
      sweep_sigmoid_row<false, true>(pass, tile, i, total);
    } else {
      sweep_sigmoid_row<false, false>(pass, tile, i, total);
    }
    total.scale += add_positives(pass, tile, i);
  });
}

inline void sigmoid_loss_tile(SigmoidLoss& pass, const Tile& tile) {
  sigmoid_gradient_tile(pass, tile, [&](std::int64_t i, SigmoidTotal& total) {
    sweep_sigmoid_loss_row(pass, tile, i, total);
  });
}

}  // namespace MXM_LEVEL
}  // namespace mxm
