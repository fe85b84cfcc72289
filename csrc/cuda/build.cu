#include "cuda/build.h"

namespace convnorm::cuda {

const char* architectures() { return CONVNORM_CUDA_ARCHS; }

}  // namespace convnorm::cuda
