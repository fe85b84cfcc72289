#if defined(__x86_64__)
#include <algorithm>
#include <vector>

#include "cpu/arena.h"
#include "ops/conv/conv.h"

#include "cpu/target_amx.h"
#include "cpu/vec.h"
#include "ops/conv/cpu/conv_taps.h"
#include "ops/conv/cpu/conv_phases.h"
#include "ops/conv/cpu/conv_tiles_plan.h"
#include "ops/conv/cpu/conv_tiles_shuffle.h"
#include "ops/conv/cpu/conv_tiles_pack.h"
#include "ops/conv/cpu/conv_tiles_patches.h"
#include "ops/conv/cpu/conv_tiles_sum.h"
#include "ops/conv/cpu/conv_tiles_multiply_amx.h"
#include "ops/conv/cpu/conv_tiles_write.h"
#include "ops/conv/cpu/conv_tiles_kernel.h"
#include "ops/conv/cpu/conv_tiles_weight.h"

namespace convnorm::conv {
extern const Tiles tiles_amx = {
    run_tiles, {tiles_packed_bytes, tiles_pack}, run_tiles_by_input, run_tiles_by_weight};
}
#endif
