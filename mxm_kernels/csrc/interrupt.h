// What Python has to say while a pass runs.

#pragma once

#include <nanobind/nanobind.h>

#include <chrono>

namespace nb = nanobind;

namespace mxm {
namespace {

// Lets Python handle a signal, every 20 ms at most: another thread may have to give way for it. True
// where the handler raised an error, which is then Python's current one.
bool interrupted() {
  using Clock = std::chrono::steady_clock;
  thread_local Clock::time_point next;
  const Clock::time_point now = Clock::now();
  if (now < next) return false;
  next = now + std::chrono::milliseconds(20);
  const nb::gil_scoped_acquire python;
  return PyErr_CheckSignals() != 0;
}

// Runs what may take seconds without Python's lock, and raises what interrupted it.
template <class Run>
void interruptible(const Run& run) {
  {
    const nb::gil_scoped_release release;
    run();
  }
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
}

}  // namespace
}  // namespace mxm
