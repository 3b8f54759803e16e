// The place of a thread in its OpenMP team; without OpenMP, alone.

#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mxm {

#ifdef _OPENMP
inline int team_size() { return omp_get_num_threads(); }
inline int thread_number() { return omp_get_thread_num(); }
#else
inline int team_size() { return 1; }
inline int thread_number() { return 0; }
#endif

}  // namespace mxm
