// Where a problem's tensors are. Torch-free.
#pragma once

#include <cstdint>

// Geometry and index arithmetic that kernels for CUDA share with the host, where it is tested by brute force.
#if defined(__CUDACC__)
#define CONVNORM_HD __host__ __device__
#else
#define CONVNORM_HD
#endif

namespace convnorm {

enum class DeviceKind : std::uint8_t { cpu, cuda };

inline const char* name(DeviceKind kind) { return kind == DeviceKind::cuda ? "cuda" : "cpu"; }

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
};

// Params of rooms with kernels for one device only have no member `device`.
template <class Params>
Device device_of(const Params& p) {
  if constexpr (requires { p.device; })
    return p.device;
  else
    return {};
}

}  // namespace convnorm
