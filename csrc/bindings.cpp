// The part of convnorm._C that is not a tensor op: build facts, instruction sets, the kernel registry and
// switches. Tensor ops register themselves in their rooms (csrc/ops/<op>/<op>.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/registry.h"
#include "cuda/build.h"
#include "cpu/ceiling.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "ops/conv/conv.h"

#ifndef CONVNORM_VERSION
#define CONVNORM_VERSION "unknown"
#endif
#ifndef CONVNORM_BUILT_WITH_TORCH
#define CONVNORM_BUILT_WITH_TORCH "unknown"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = CONVNORM_VERSION;
  info["built_with_torch"] = CONVNORM_BUILT_WITH_TORCH;
  info["compiler"] = __VERSION__;
  info["cuda"] = convnorm::cuda::architectures ? convnorm::cuda::architectures() : "";
#if defined(__x86_64__)
  info["isas_built"] = std::vector<std::string>{"generic", "avx2", "avx512", "avx512bf16", "amx"};
#else
  info["isas_built"] = std::vector<std::string>{"generic"};
#endif
  return info;
}

py::list kernels() {
  py::list rows;
  for (const auto& k : convnorm::known_kernels()) {
    py::dict row;
    row["op"] = k.op;
    row["kernel"] = k.kernel;
    row["about"] = k.about;
    row["isa"] = k.isa;
    row["device"] = k.device;
    rows.append(row);
  }
  return rows;
}

py::list trace_end() {
  py::list rows;
  for (const auto& v : convnorm::trace_end()) {
    py::dict row;
    row["op"] = v.op;
    row["kernel"] = v.kernel;
    row["about"] = v.about;
    row["refusal"] = v.refusal;
    row["chosen"] = v.chosen;
    rows.append(row);
  }
  return rows;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "convnorm's native module: operators are in torch.ops.convnorm, switches and facts are here.";
  m.def("build_info", &build_info);
  m.def("kernels", &kernels, "Every kernel of every op, in order of choice.");
  m.def("supported_isa", [] { return convnorm::name(convnorm::supported_isa()); });
  m.def("active_isa", [] { return convnorm::name(convnorm::active_isa()); });
  m.def("set_isa", [](const std::string& isa) { convnorm::set_isa(isa.c_str()); });
  m.def("forced_kernel", [](const std::string& op) { return convnorm::forced_kernel(op.c_str()); });
  m.def("force_kernel", &convnorm::force_kernel, "Pin an op to a kernel by name; an empty name frees it.");
  m.def("winograd", &convnorm::conv::winograd_enabled);
  m.def("set_winograd", &convnorm::conv::set_winograd);
  m.def("scratch_held", &convnorm::scratch_held, "Bytes of work memory held by the calling thread.");
  m.def("scratch_peak_reset", &convnorm::scratch_peak_reset);
  m.def("scratch_peak", &convnorm::scratch_peak,
        "Bytes of work memory that calls needed since scratch_peak_reset, all threads together.");
  m.def("fma_gflops", &convnorm::fma_gflops, "The multiply-add ceiling of so many threads, measured now.");
  m.def("copy_gbps", &convnorm::copy_gbps, "The copy ceiling (bytes read plus written), measured now.");
  m.def("trace_begin", &convnorm::trace_begin);
  m.def("trace_end", &trace_end, "What choose() considered since trace_begin, in order.");
}
