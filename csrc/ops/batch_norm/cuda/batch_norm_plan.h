// Batch norm's plans (cuda/plan.h).
#pragma once

#include "cuda/plan.h"
#include "ops/batch_norm/batch_norm.h"

namespace convnorm::batch_norm {

template <class Params>
cuda::Plan rows_plan(const Params& p) {
  return cuda::rows_plan(p.dtype, p.x.values(), p.x.channels);
}

template <class Params>
cuda::Plan planes_plan(const Params& p) {
  return cuda::planes_plan(p.dtype, p.x.outer, p.x.channels, p.x.inner);
}

}  // namespace convnorm::batch_norm
