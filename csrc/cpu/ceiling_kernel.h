// Twelve independent chains of multiply-adds. Include after cpu/vec.h.
#pragma once

namespace convnorm {
namespace {

float fma_loop(std::int64_t rounds) {
  vec<float> acc[kFmasPerRound];
  for (int i = 0; i < kFmasPerRound; ++i) acc[i] = splat<float>(static_cast<float>(i));
  const vec<float> a = splat<float>(0.999f), b = splat<float>(0.001f);
  for (std::int64_t r = 0; r < rounds; ++r)
    for (int i = 0; i < kFmasPerRound; ++i) acc[i] = acc[i] * a + b;
  vec<float> sum = acc[0];
  for (int i = 1; i < kFmasPerRound; ++i) sum += acc[i];
  return lane_sum<float>(sum);
}

}  // namespace
}  // namespace convnorm
