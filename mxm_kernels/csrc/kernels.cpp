// One level: compiled with that level's flags, MXM_LEVEL its name and MXM_LANES its width.

#include "kernels.h"

#include "backward.h"
#include "forward.h"
#include "row_losses.h"
#include "sigmoid.h"

namespace mxm {
namespace MXM_LEVEL {

template <Floats (*function)(Floats)>
void each(const float* from, float* to, std::int64_t length) {
  for (std::int64_t k = 0; k < length; k += kLanes) {
    store(to + k, function(load(from + k, length - k)), length - k);
  }
}

extern const Kernels kernels;
const Kernels kernels = {MXM_NAME(MXM_LEVEL),
                         forward_tile,
                         finish,
                         prepare,
                         backward_tile,
                         sigmoid_forward_tile,
                         sigmoid_backward_tile,
                         sigmoid_loss_tile,
                         row_losses,
                         each<exponential>,
                         each<softplus>};

}  // namespace MXM_LEVEL
}  // namespace mxm
