#include "common/registry.h"

#include <cstdlib>
#include <map>

namespace convnorm {
namespace {

std::map<std::string, std::string> read_environment() {
  std::map<std::string, std::string> pins;
  const char* value = std::getenv("CONVNORM_FORCE");
  std::stringstream rows(value ? value : "");
  for (std::string row; std::getline(rows, row, ',');) {
    const std::size_t eq = row.find('=');
    check_value(eq != std::string::npos, "CONVNORM_FORCE: got '", row, "', must be op=kernel[,op=kernel...]");
    pins[row.substr(0, eq)] = row.substr(eq + 1);
  }
  return pins;
}

std::map<std::string, std::string>& pins() {
  static std::map<std::string, std::string> map = read_environment();
  return map;
}

thread_local bool trace_on = false;
thread_local std::vector<Verdict> trace_log;

}  // namespace

std::vector<KernelInfo>& known_kernels() {
  static std::vector<KernelInfo> rows;
  return rows;
}

const std::string& forced_kernel(const char* op) {
  static const std::string none;
  if (pins().empty()) return none;
  const auto found = pins().find(op);
  return found == pins().end() ? none : found->second;
}

void force_kernel(const std::string& op, const std::string& kernel) {
  if (kernel.empty()) {
    pins().erase(op);
    return;
  }
  bool known = false;
  for (const KernelInfo& row : known_kernels()) known = known || (row.op == op && row.kernel == kernel);
  check_value(known, "force: op '", op, "' has no kernel '", kernel, "'");
  pins()[op] = kernel;
}

void trace_begin() {
  trace_on = true;
  trace_log.clear();
}

std::vector<Verdict> trace_end() {
  trace_on = false;
  return std::move(trace_log);
}

bool tracing() { return trace_on; }

void trace(Verdict verdict) { trace_log.push_back(std::move(verdict)); }

}  // namespace convnorm
