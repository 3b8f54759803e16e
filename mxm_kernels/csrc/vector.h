// Vectors of MXM_LANES floats on the compiler's vector extension, so that one source serves
// every instruction set. Included once for each level, inside that level's namespace.

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace mxm {
namespace MXM_LEVEL {

constexpr int kLanes = MXM_LANES;

typedef float Floats __attribute__((vector_size(MXM_LANES * sizeof(float))));
typedef std::int32_t Ints __attribute__((vector_size(MXM_LANES * sizeof(std::int32_t))));

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Ints load(const std::int32_t* from) {
  Ints value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

inline void store(std::int32_t* to, Ints value) { std::memcpy(to, &value, sizeof value); }

typedef std::int16_t Shorts __attribute__((vector_size(MXM_LANES * sizeof(std::int16_t))));

inline Floats widened(const std::int16_t* from) {
  Shorts value;
  std::memcpy(&value, from, sizeof value);
  return __builtin_convertvector(__builtin_convertvector(value, Ints), Floats);
}

// Rounded to the nearest integer, at most 2^15 - 1 in magnitude. Beside 1.5 * 2^23 a float has no
// bit below 1, and its last 16 bits are the integer's.
inline Shorts fixed_point(Floats value) {
  constexpr float kMost = 32767.0f;
  value = value > kMost ? Floats{} + kMost : value;
  value = value < -kMost ? Floats{} - kMost : value;
  return __builtin_convertvector(reinterpret_cast<Ints>(value + 12582912.0f), Shorts);
}

// The first `count` lanes only; the others are 0.
inline Floats load(const float* from, std::int64_t count) {
  if (count >= kLanes) return load(from);
  Floats value{};
  std::memcpy(&value, from, count * sizeof(float));
  return value;
}

inline void store(float* to, Floats value, std::int64_t count) {
  if (count >= kLanes) return store(to, value);
  std::memcpy(to, &value, count * sizeof(float));
}

inline Floats fill(float value) { return value - Floats{}; }  // x - 0 keeps the sign of zero

inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// At most `bound`; NaN stays NaN.
inline Floats at_most(float bound, Floats value) { return fill(bound) < value ? fill(bound) : value; }

// A logit, rounded before anything is subtracted from it. The compiler would fuse product and
// difference: a row's greatest logit would then miss its own normaliser by its rounding, which for
// logits of 1e5 is 0.4 % of the gradient.
inline Floats logit(Floats product, float scale) {
  Floats value = product * scale;
#if defined(__x86_64__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#else
  asm("" : "+m"(value));
#endif
  return value;
}

inline Ints lane_numbers() {
  Ints lanes;
  for (int k = 0; k < kLanes; ++k) lanes[k] = k;
  return lanes;
}

typedef double Doubles __attribute__((vector_size(MXM_LANES * sizeof(double))));

inline Doubles load(const double* from) {
  Doubles value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(double* to, Doubles value) { std::memcpy(to, &value, sizeof value); }

inline Doubles doubles(Floats value) { return __builtin_convertvector(value, Doubles); }

inline double sum(Doubles value) {
  double total = 0;
  for (int k = 0; k < kLanes; ++k) total += value[k];
  return total;
}

// Lane by lane in order, for the same bits at every call.
inline float sum(Floats value) {
  float total = 0;
  for (int k = 0; k < kLanes; ++k) total += value[k];
  return total;
}

inline std::int32_t sum(Ints value) {
  std::int32_t total = 0;
  for (int k = 0; k < kLanes; ++k) total += value[k];
  return total;
}

inline float largest(Floats value) {
  float top = value[0];
  for (int k = 1; k < kLanes; ++k) top = value[k] > top ? value[k] : top;
  return top;
}

// exp(x) for x <= 88, within 2.5 units in the last place; 0 below -87 (-inf included), where
// the result would leave the normal range; NaN for NaN. It writes x = k ln 2 + r with
// |r| <= ln 2 / 2 and exp(r) as a minimax polynomial: 9e-8 relative error, exact at 0.
inline Floats exponential(Floats x) {
  // 1.5 * 2^23 rounds a sum with it to an integer; 127 more, and the last nine bits of the
  // sum are the biased exponent of 2^k.
  constexpr float kRound = 12582912.0f + 127.0f;
  constexpr float kLog2High = 0.693359375f;  // 9 bits: k * kLog2High is exact, FMA or not
  constexpr float kLog2Low = -2.12194440e-4f;
  const Floats shifted = x * 1.44269504f + kRound;
  const Floats k = shifted - kRound;
  const Floats r = (x - k * kLog2High) - k * kLog2Low;
  Floats p = r * 0.00829027221f + 0.0418981612f;
  p = p * r + 0.166676387f;
  p = p * r + 0.499991477f;
  p = p * r + 0.999999702f;
  p = p * r + 1.0f;
  const Ints power = reinterpret_cast<Ints>(shifted) << 23;
  return x < -87.0f ? Floats{} : p * reinterpret_cast<Floats>(power);
}

// log(1 + exp(x)), within 7 units in the last place down to x = -87, 0 below: of sums of small
// terms none is lost. It is max(x, 0) + log(1 + e) with e = exp(-|x|), and log(1 + e) / e a
// minimax polynomial on [0, 1] that is 1 at 0: 3.4e-8 relative error, 1.8e-7 as evaluated.
inline Floats softplus(Floats x) {
  const Floats e = exponential(x < 0.0f ? x : -x);
  Floats p = e * 0.00536482641f - 0.030065801f;
  p = p * e + 0.0792045519f;
  p = p * e - 0.137538031f;
  p = p * e + 0.191536561f;
  p = p * e - 0.248571634f;
  p = p * e + 0.33321324f;
  p = p * e - 0.499996483f;
  p = p * e + 1.0f;
  return (x > 0.0f ? x : Floats{}) + e * p;
}

// 1 / (1 + exp(-x)), without cancellation on either side.
inline Floats sigmoid(Floats x) {
  const Floats e = exponential(x < 0.0f ? x : -x);
  return (x < 0.0f ? e : fill(1.0f)) / (e + 1.0f);
}

}  // namespace MXM_LEVEL
}  // namespace mxm
