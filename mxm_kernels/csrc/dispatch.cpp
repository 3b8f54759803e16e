// Which levels this machine can run.

#include <stdexcept>

#include "kernels.h"

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

}  // namespace mxm
