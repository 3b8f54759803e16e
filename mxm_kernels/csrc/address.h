// Memory that Python names by its address.

#pragma once

#include <cstdint>

namespace mxm {
namespace {

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace
}  // namespace mxm
