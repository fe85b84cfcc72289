#if defined(__x86_64__)
#include "cpu/arena.h"
#include "ops/conv/conv.h"

#include "cpu/target_avx512.h"
#include "cpu/vec.h"
#include "cpu/microkernel.h"
#include "ops/conv/cpu/conv_taps.h"
#include "ops/conv/cpu/conv_igemm_pack.h"
#include "ops/conv/cpu/conv_igemm_pack_weights.h"
#include "ops/conv/cpu/conv_igemm_weight_sums.h"
#include "ops/conv/cpu/conv_winograd_transform.h"
#include "ops/conv/cpu/conv_winograd_slices.h"
#include "ops/conv/cpu/conv_winograd_tiles.h"
#include "ops/conv/cpu/conv_winograd_ahead.h"
#include "ops/conv/cpu/conv_winograd_targets.h"
#include "ops/conv/cpu/conv_winograd_outputs.h"
#include "ops/conv/cpu/conv_winograd_kernel.h"
#include "ops/conv/cpu/conv_winograd_weight.h"
#include "ops/conv/cpu/conv_winograd_folded.h"

namespace convnorm::conv {
extern const Winograd winograd_avx512 = {
    run_winograd, {winograd_packed_bytes, winograd_pack}, winograd_by_weight, run_folded};
}
#endif
