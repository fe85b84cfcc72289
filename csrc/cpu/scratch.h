// Work memory of a thread: allocated once, grown when a call needs more, kept for the next call, 64-byte
// aligned.
//
// Four users can be active on one thread at a time, each with its own slot: the caller of an op (`shared`
// data that all workers read, such as packed weights), a worker (`local` tiles), a kernel that rewrites its
// problem and calls another kernel on it (`rewritten`), and one whose workers share out a `part` of the work,
// or have one each. Contents do not survive the call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace convnorm {

enum class Slot : int { shared = 0, local = 1, rewritten = 2, part = 3 };
inline constexpr int kSlots = 4;

void* scratch_bytes(Slot slot, std::size_t bytes);

// Bytes held by the calling thread in all slots.
std::size_t scratch_held();

// What calls need rather than what is held: the largest request of each slot of each thread since the last
// reset, summed. Between the reset and the question only one thread may call ops.
void scratch_peak_reset();
std::size_t scratch_peak();

}  // namespace convnorm
