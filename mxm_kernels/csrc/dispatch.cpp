// Which levels of instruction set, and which units, this machine has.

#include <stdexcept>

#include "fused.h"
#include "kernels.h"

#ifdef MXM_X86
#include <cpuid.h>
#endif
#ifdef MXM_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mxm {

#define MXM_DECLARE(level, table) \
  namespace level {               \
  extern const table;             \
  }
MXM_DECLARE(portable, Kernels kernels)
#ifdef MXM_X86
MXM_DECLARE(avx2, Kernels kernels)
MXM_DECLARE(avx512, Kernels kernels)
#endif
#ifdef MXM_BFLOAT16
MXM_DECLARE(avx512_bf16, Fused fused)
#endif
#ifdef MXM_AMX
MXM_DECLARE(amx, Fused fused)
#endif

namespace {

// What is here, by the member that names it.
template <class Table>
std::vector<std::string> names(const std::vector<const Table*>& found,
                               const char* Table::*name) {
  std::vector<std::string> all;
  for (const Table* one : found) all.emplace_back(one->*name);
  return all;
}

template <class Table>
const Table& find(const std::vector<const Table*>& found, const char* Table::*name,
                  const char* kind, const std::string& wanted) {
  for (const Table* one : found) {
    if (wanted == one->*name) return *one;
  }
  throw std::invalid_argument(std::string("no ") + kind + " " + wanted + " on this machine");
}

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

std::vector<std::string> levels() { return names(available(), &Kernels::level); }

const Kernels& kernels(const std::string& level) {
  return find(available(), &Kernels::level, "level", level);
}

namespace {

#ifdef MXM_X86
// A word of the processor's list of features, leaf 7.
enum class Word { kDirect, kExtended };

bool has(Word word, int bit) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const unsigned leaf = word == Word::kExtended ? 1 : 0;
  if (__get_cpuid_count(7, leaf, &a, &b, &c, &d) == 0) return false;
  return ((word == Word::kExtended ? a : d) >> bit & 1) != 0;
}
#endif

#ifdef MXM_AMX
// Linux saves the tile registers of a process only after it has asked for them.
bool request_permission() {
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

std::vector<const Fused*> find_units() {
  std::vector<const Fused*> found;
#ifdef MXM_BFLOAT16
  if (levels().front() != "avx512" || !has(Word::kExtended, 5)) return found;  // AVX512-BF16
#ifdef MXM_AMX
  const bool tiles = has(Word::kDirect, 24) && has(Word::kDirect, 22);  // AMX-TILE, AMX-BF16
  if (tiles && request_permission()) found.push_back(&amx::fused);
#endif
  found.push_back(&avx512_bf16::fused);
#endif
  return found;
}

const std::vector<const Fused*>& available_units() {
  static const std::vector<const Fused*> found = find_units();
  return found;
}

}  // namespace

std::vector<std::string> units() { return names(available_units(), &Fused::unit); }

const Fused& fused(const std::string& unit) {
  return find(available_units(), &Fused::unit, "unit", unit);
}

}  // namespace mxm
