#include "ops/conv/conv.h"

#include "cpu/target_generic.h"
#include "cpu/vec.h"
#include "cpu/welford.h"
#include "ops/conv/cpu/conv_depthwise_slide.h"
#include "ops/conv/cpu/conv_depthwise_plan.h"
#include "ops/conv/cpu/conv_depthwise_rolling.h"
#include "ops/conv/cpu/conv_depthwise_channels.h"
#include "ops/conv/cpu/conv_depthwise_pack.h"
#include "ops/conv/cpu/conv_depthwise_strip.h"
#include "ops/conv/cpu/conv_depthwise_planes.h"
#include "ops/conv/cpu/conv_depthwise_weight.h"
#include "ops/conv/cpu/conv_depthwise_rolling_weight.h"
#include "ops/conv/cpu/conv_depthwise_weight_channels.h"
#include "ops/conv/cpu/conv_depthwise_kernel.h"

namespace convnorm::conv {
extern const Depthwise depthwise_generic = {run_depthwise, run_depthwise_by_weight};
}
