// Depthwise convolution of Dense problems with one channel per group: which vectors run where. See
// conv_depthwise_slide.h for the method.
#pragma once

namespace convnorm::conv {
namespace {

// Phases of one row share everything but what is along it, unless their planes were merged to rows.
inline bool share_rows(const Dense* problems, std::int64_t phases) {
  for (std::int64_t f = 1; f < phases; ++f)
    for (int s = 0; s < kSpatial - 1; ++s)
      if (problems[f].axis[s].out != problems[0].axis[s].out) return false;
  return true;
}

inline void run_depthwise(const Dense* problems, std::int64_t count, std::int64_t phases) {
  if (count == 1 && rolls(problems[0])) return run_rolling(problems[0]);
  bool shared = true;
  for (std::int64_t i = 0; i < count; i += phases) shared = shared && share_rows(problems + i, phases);
  if (!shared) phases = 1;
  dispatch(problems[0].dtype, [&](auto tag) {
    using D = decltype(tag);
    channels_are_rows<compute_t<D>>(problems[0]) ? run_channels<D>(problems, count, phases)
                                                 : run_planes<D>(problems, count, phases);
  });
}

inline void run_depthwise_by_weight(const Dense& d) {
  if (weighs_rolling(d)) return run_weigh_rolling(d);
  dispatch(d.dtype, [&](auto tag) {
    using D = decltype(tag);
    channels_are_rows<compute_t<D>>(d) ? weigh_channels<D>(d) : weigh_planes<D>(d);
  });
}

}  // namespace
}  // namespace convnorm::conv
