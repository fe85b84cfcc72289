// Several kernels for one op form an ordered list with names: the first that accepts the problem wins, and
// each refusal is a printable reason. The choice depends on shapes, dtype, layout and device, never on timing
// or threads.
//
// Torch-free. The rows of a list are KernelRows.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/kernel_row.h"

namespace convnorm {

struct Verdict {
  std::string op, kernel, about, refusal;  // refusal is empty for the winner and "not needed" below it
  bool chosen = false;
};

struct KernelInfo {
  std::string op, kernel, about, isa, device;
};

// All rows of all lists, for `convnorm info`.
std::vector<KernelInfo>& known_kernels();

template <class Row>
struct Register {
  Register(const char* op, std::span<const Row> rows) {
    for (const Row& row : rows)
      if (row.run) known_kernels().push_back({op, row.name, row.about, name(row.isa), name(row.device)});
  }
};

// A kernel pinned by name for an op; empty when free. CONVNORM_FORCE="conv=conv_im2col,max_pool=..." sets it
// at start.
const std::string& forced_kernel(const char* op);
void force_kernel(const std::string& op, const std::string& kernel);

// While tracing, each choice on this thread is recorded; explain() and the benchmarks read it.
void trace_begin();
std::vector<Verdict> trace_end();
bool tracing();
void trace(Verdict verdict);

template <class Row, class Params>
const char* refusal(const Row& row, const Params& params, const std::string& forced) {
  if (!forced.empty() && forced != row.name) return "another kernel is forced by name";
  if (row.device != device_of(params).kind) return "is for tensors on another device";
  if (!row.run) return "this build has no CUDA kernels (CONVNORM_CUDA)";
  if (row.isa > active_isa()) return "needs a wider instruction set than is active (CONVNORM_ISA)";
  return row.refuse ? row.refuse(params) : nullptr;
}

// The error of a problem that no row accepts. Its reasons are found again: a choice that succeeds has no time
// to put those of the rows before it into words.
template <class Row, class Params>
[[noreturn]] void refuse_all(const char* op, std::span<const Row> rows, const Params& params,
                             const std::string& forced) {
  std::string reasons;
  for (const Row& row : rows)
    if (forced.empty() ? row.device == device_of(params).kind : forced == row.name)
      reasons += text(" ", row.name, ": ", refusal(row, params, forced), ";");
  const char* none = forced.empty() ? " no kernel is for this device" : " no kernel of that name";
  check(false, op, ": no kernel accepts this problem", forced.empty() ? "" : " (forced: ", forced,
        forced.empty() ? ":" : "):", reasons.empty() ? none : reasons);
  std::abort();  // check has thrown
}

// The first row that accepts. `op` is the registered name, which errors and traces carry. Rows for another
// device are no part of the list.
template <class Row, class Params>
const Row& choose(const char* op, std::span<const Row> rows, const Params& params) {
  const std::string& forced = forced_kernel(op);
  const bool traced = tracing();
  const Row* winner = nullptr;
  const DeviceKind device = device_of(params).kind;
  for (const Row& row : rows) {
    if (row.device != device && forced.empty()) continue;
    const char* reason = winner ? "not needed: an earlier one accepted" : refusal(row, params, forced);
    if (traced) trace({op, row.name, row.about, reason ? reason : "", !reason});
    if (!reason) winner = &row;
    if (winner && !traced) break;
  }
  if (!winner) refuse_all(op, rows, params, forced);
  return *winner;
}

}  // namespace convnorm
