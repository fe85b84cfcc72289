// By input: a problem per phase of the stride.
//
// Include after conv_taps.h.
#pragma once

namespace convnorm::conv {
namespace {

// A window that is narrower than its stride leaves phases of the gradient without a tap. They are zeros, and
// all of the result is, in one go, before the other phases are written: pixel by pixel zeros took as long as
// the sums.
inline void clear_result(const Params& p) {
  constexpr std::int64_t kPiece = 64 << 10;
  const std::int64_t size = p.input.n * p.input.c * pixels(p.input) * bytes(p.dtype);
  parallel_for(ceil_div(size, kPiece), 4, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t from = begin * kPiece, to = imin(size, end * kPiece);
    std::memset(static_cast<char*>(p.input.data) + from, 0, static_cast<std::size_t>(to - from));
  });
}

template <class Run>
void each_phase(const Params& p, Run run) {
  const std::vector<Dense> problems = by_input_problems(p);
  const auto has_taps = [](const Dense& d) { return tap_count(d) > 0; };
  if (!std::all_of(problems.begin(), problems.end(), has_taps)) clear_result(p);
  for (const Dense& d : problems)
    if (has_taps(d)) run(d);
}

}  // namespace
}  // namespace convnorm::conv
