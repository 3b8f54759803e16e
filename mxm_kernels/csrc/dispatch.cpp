// Which levels this machine can run.

#include <stdexcept>

#include "fused.h"
#include "kernels.h"

#ifdef MXM_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mxm {

#define MXM_DECLARE(level)      \
  namespace level {             \
  extern const Kernels kernels; \
  }
MXM_DECLARE(portable)
#ifdef MXM_X86
MXM_DECLARE(avx2)
MXM_DECLARE(avx512)
#endif

namespace {

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
#ifdef MXM_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512::kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back(&avx2::kernels);
  }
#endif
  found.push_back(&portable::kernels);
  return found;
}

}  // namespace

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Kernels* one : available()) names.emplace_back(one->level);
  return names;
}

const Kernels& kernels(const std::string& level) {
  for (const Kernels* one : available()) {
    if (level == one->level) return *one;
  }
  throw std::invalid_argument("no level " + level + " on this machine");
}

#ifdef MXM_AMX
namespace {

bool has_instructions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool tiles = (d >> 24 & 1) != 0 && (d >> 22 & 1) != 0;  // AMX-TILE, AMX-BF16
  __get_cpuid_count(7, 1, &a, &b, &c, &d);
  return tiles && (a >> 5 & 1) != 0;  // AVX512-BF16
}

// Linux saves the tile registers of a process only after it has asked for them.
bool request_permission() {
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

bool has_matrix_unit() {
  static const bool found = levels().front() == "avx512" && has_instructions() &&
                            request_permission();
  return found;
}
#else
bool has_matrix_unit() { return false; }
#endif

}  // namespace mxm
