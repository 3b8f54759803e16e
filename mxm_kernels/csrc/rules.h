// What a plane is told of its pairs: offsets of their logits, and which pairs are no negatives.
// backends/interface.py defines the five vectors.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <unordered_map>
#include <vector>

namespace mxm {

// The vectors of one side from a row on. Of the texts, whole vectors can be read.
struct RuleRows {
  const float* offsets = nullptr;
  const float* teacher_offsets = nullptr;
  const float* thresholds = nullptr;  // of the products of the teacher's features
  const std::int32_t* exclude = nullptr;  // without an id -1 of an image, -2 of a text: never equal
  const std::int32_t* within = nullptr;   // without an id -1
};

// The rows of one side, with `pad` more, which no rule speaks of.
struct Rules {
  RuleRows from(std::int64_t row) const {
    if (offsets.empty()) return {};
    return {offsets.data() + row, teacher_offsets.data() + row, thresholds.data() + row,
            exclude.data() + row, within.data() + row};
  }

  std::vector<float> offsets;
  std::vector<float> teacher_offsets;
  std::vector<float> thresholds;
  std::vector<std::int32_t> exclude;
  std::vector<std::int32_t> within;
};

// The ids of images and texts as numbers of 32 bits that are equal where the ids are; `none` where
// an id is below 0.
class Ids {
 public:
  static constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max() - 1;

  Ids(const std::int64_t* ids, std::int64_t length)
      : ids_(ids), small_(std::all_of(ids, ids + length, [](std::int64_t id) { return id <= kMost; })) {}

  void number(std::int64_t first, std::int64_t length, std::int32_t* to) {
    for (std::int64_t k = 0; k < length; ++k) {
      const std::int64_t id = ids_[first + k];
      if (id >= 0) to[k] = small_ ? static_cast<std::int32_t>(id) : number_of(id);
    }
  }

 private:
  std::int32_t number_of(std::int64_t id) {
    return numbers_.emplace(id, static_cast<std::int32_t>(numbers_.size())).first->second;
  }

  const std::int64_t* ids_;
  bool small_;
  std::unordered_map<std::int64_t, std::int32_t> numbers_;
};

// Vectors of images and then texts; null for one that is not given.
struct Given {
  const float* offsets;
  const float* teacher_offsets;
  const std::int64_t* exclude;
  const std::int64_t* within;
  const float* thresholds;
};

inline std::vector<float> copied(const float* from, std::int64_t first, std::int64_t length,
                                 std::int64_t pad, float otherwise) {
  std::vector<float> values(length + pad, otherwise);
  if (from != nullptr) std::copy_n(from + first, length, values.begin());
  return values;
}

// The rules of the images (rows long) and of the texts behind them (cols long).
inline void read_rules(const Given& given, std::int64_t rows, std::int64_t cols, std::int64_t pad,
                       Rules& images, Rules& texts) {
  const auto read = [&](Rules& side, std::int64_t first, std::int64_t length, std::int32_t none) {
    constexpr float kNever = std::numeric_limits<float>::infinity();
    side.offsets = copied(given.offsets, first, length, pad, 0);
    side.teacher_offsets = copied(given.teacher_offsets, first, length, pad, 0);
    side.thresholds = copied(given.thresholds, first, length, pad, kNever);
    side.exclude.assign(length + pad, none);
    side.within.assign(length + pad, -1);
  };
  read(images, 0, rows, -1);
  read(texts, rows, cols, -2);
  if (given.exclude != nullptr) {
    Ids ids(given.exclude, rows + cols);
    ids.number(0, rows, images.exclude.data());
    ids.number(rows, cols, texts.exclude.data());
  }
  if (given.within != nullptr) {
    Ids ids(given.within, rows + cols);
    ids.number(0, rows, images.within.data());
    ids.number(rows, cols, texts.within.data());
  }
}

}  // namespace mxm
