#if defined(__x86_64__)
#include <algorithm>
#include <cstring>

#include "cpu/arena.h"
#include "ops/conv/conv.h"

#include "cpu/target_avx512.h"
#include "cpu/vec.h"
#include "cpu/microkernel.h"
#include "ops/conv/cpu/conv_taps.h"
#include "ops/conv/cpu/conv_phases.h"
#include "ops/conv/cpu/conv_igemm_pack.h"
#include "ops/conv/cpu/conv_igemm_pack_channels.h"
#include "ops/conv/cpu/conv_igemm_pack_weights.h"
#include "ops/conv/cpu/conv_igemm_plan.h"
#include "ops/conv/cpu/conv_igemm_window.h"
#include "ops/conv/cpu/conv_igemm_task.h"
#include "ops/conv/cpu/conv_igemm_pixels.h"
#include "ops/conv/cpu/conv_igemm_channels.h"
#include "ops/conv/cpu/conv_igemm_kernel.h"
#include "ops/conv/cpu/conv_igemm_weight_window.h"
#include "ops/conv/cpu/conv_igemm_weight_sums.h"
#include "ops/conv/cpu/conv_igemm_weight.h"
#include "ops/conv/cpu/conv_igemm_weight_rows.h"
#include "ops/conv/cpu/conv_igemm_turned.h"
#include "ops/conv/cpu/conv_col2im.h"
#include "ops/conv/cpu/conv_grouped_pack.h"
#include "ops/conv/cpu/conv_grouped.h"
#include "ops/conv/cpu/conv_grouped_lanes.h"
#include "ops/conv/cpu/conv_grouped_weight.h"

namespace convnorm::conv {
extern const Igemm igemm_avx512 = {run_gemm,    {gemm_packed_bytes, gemm_pack}, run_by_input, run_by_weight,
                                   run_grouped, run_grouped_by_weight,          run_col2im,   run_turned};
}
#endif
