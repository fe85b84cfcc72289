// How an implicit-GEMM problem is cut into tasks, and how much of it is packed at a time.
//
// Include after conv_igemm_pack.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kWeightBytes = 256 << 10;  // half of L2

// What a problem is cut into; a function of its shape only.
template <class C>
struct Plan {
  bool channel_rows;
  bool in_place;     // rows of channels follow each other in the source
  bool indirect;     // they are read through a table of pointers
  bool copied;       // they are read from a padded copy, at one distance
  bool paired;       // two groups of a vector of channels each, side by side in a tile
  bool pixel_rows;   // pixels across: all that is packed of a channel is a row of the source's pixels
  bool source_rows;  // and it is read where it lies
  bool turned;       // pixels across, few channels at distance 1 in the destination
  bool streamed;     // the result is written around the caches where its lines are whole
  bool windowed;     // a padded copy in place of patches: copied, or rows of pixels, shifted by each tap
  Cut cut;
  std::int64_t chain;  // limit of a chain of FMAs
  std::int64_t span;   // pixels across: packed at a time
  std::int64_t pixels, pixel_blocks, channel_blocks;
  std::int64_t plane, unit;  // windowed: tasks are `unit` pixels of a plane, whole rows or a piece of one
  std::int64_t panel;        // output channels per weight panel
  std::int64_t panels;       // of a group
  std::int64_t weights;      // packed elements of a group
  std::int64_t groups, group_span;  // in all; of one task
  // Bias of a group, in whole vectors where channels are across.
  std::int64_t bias_row(std::int64_t channels) const {
    return channel_rows ? ceil_div(channels, kLanes<C>) * kLanes<C> : channels;
  }
  std::int64_t group_blocks() const { return ceil_div(groups, group_span); }
  // A block of weights that every tile of rows may stream; else a panel of it serves all rows before the
  // next.
  bool weights_in_l2(const Block& b) const {
    return b.depth() * panels * panel * std::int64_t(sizeof(C)) <= kWeightBytes;
  }
  bool weights_in_l2() const { return weights * std::int64_t(sizeof(C)) <= kWeightBytes; }
  // Pixels across: all blocks of a span before the next span.
  bool by_span() const { return weights_in_l2() && !windowed; }
  std::int64_t tasks() const { return group_blocks() * channel_blocks * pixel_blocks; }

  // Channels of panel i. Interleaved panels are balanced (20 = 5+5+5+5, not 6+6+6+2): narrow tiles run
  // slower.
  std::int64_t first_channel(std::int64_t i, std::int64_t channels) const {
    return channel_rows ? imin(channels, i * panel) : i * (channels / panels) + imin(i, channels % panels);
  }
  std::int64_t first_pixel(std::int64_t i) const {
    if (windowed) {
      const std::int64_t of_plane = ceil_div(plane, this->unit);
      return i / of_plane * plane + imin(plane, i % of_plane * this->unit);
    }
    return imin(pixels, ceil_div(pixels, tile_pixels()) * i / pixel_blocks * tile_pixels());
  }
  // Of the longest task.
  std::int64_t most_pixels() const {
    if (windowed) return imin(plane, unit);
    return imin(pixels, ceil_div(ceil_div(pixels, tile_pixels()), pixel_blocks) * tile_pixels());
  }
  // Tasks are so many pixels, or a multiple, and differ by no more than that: threads have the same to do.
  std::int64_t tile_pixels() const { return channel_rows ? kRows : kCols<C>; }
};

inline constexpr std::int64_t kPixelBlock =
    208;  // pixels of a task; channels across: 208 x 320 floats, half of L2
inline constexpr std::int64_t kLeastChannels = 64;  // a channel block packs the patches again: not below this
inline constexpr std::int64_t kLeastIndirect = 8;   // shorter runs of channels are packed

inline constexpr std::int64_t kMostJoined = 32;  // channels, up to which window rows are joined

inline constexpr std::int64_t kGroupSpan = 8;  // groups that share one table of pointers

// Pixels packed at a time, so that they stay in L1: the more, the longer the rows that are written in turn,
// and the fewer lists of runs.
template <class C>
std::int64_t pixel_span(const Dense& d, const Cut& cut) {
  const std::int64_t listed = (kMaxSegments - 2) * imax(1, d.axis[2].out) / kCols<C>;
  return imax(1, imin(imin(kPixelBlock / kCols<C>, listed), kMaxDepth / imax(1, cut.depth()))) * kCols<C>;
}

// A 1x1, stride-1 problem: the pixels of an image lie at one distance,
inline bool pixels_follow(const Dense& d, const Cut& cut) {
  const Axis& w = d.axis[2];
  return cut.taps == 1 && w.step == 1 && w.offset == 0 && w.out == w.source &&
         d.axis[0].out * d.axis[1].out == 1 && d.axis[0].offset == 0 && d.axis[1].offset == 0;
}
// those of several images too.
inline bool rows_follow(const Dense& d, const Cut& cut) {
  const Axis& w = d.axis[2];
  return pixels_follow(d, cut) && (d.n == 1 || d.src_n == w.out * w.source_stride);
}

// Whether rows of pixels are read where they lie. Packing costs a sixth of the time of 64 filters with
// 64-byte vectors; with more filters it is shared, and with narrower vectors the rows, a page each, cost as
// much. Rows that fall into few sets of L1 would push each other out.
template <class C>
bool source_rows_serve(const Dense& d) {
  return CONVNORM_VECTOR_BYTES == 64 && d.out_c <= kFewFilters &&
         d.src_c * std::int64_t(sizeof(C)) % 1024 != 0;
}

// Few channels: a row of the window, all of its taps and channels, is one stretch of memory.
inline bool window_rows_join(const Dense& d) {
  const Axis& w = d.axis[2];
  return d.red_c <= kMostJoined && w.taps > 1 && w.taps * d.red_c <= kMaxDepth && w.offset_step == 1;
}

// Whether pixels are read from a padded copy, where neighbours are at one distance: pointers to them, which
// for 10 filters of 5x5x3 took as long as the sums, are then not needed, nor as many registers. The copy is
// shared by all filters and taps. A dilated window skips much of its padding by pointers.
// Tasks are then pixels of one plane: where planes are small and weights exceed L2, those of several images
// had better share a pass over the weights.
inline bool copy_serves(const Dense& d) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const bool tight = (h.taps < 2 || h.offset_step * h.offset_step == 1) &&
                     (w.taps < 2 || w.offset_step * w.offset_step == 1);
  const bool passes = d.n > 1 && 2 * d.axis[1].out * d.axis[2].out < kPixelBlock &&
                      tap_count(d) * d.red_c * d.out_c * std::int64_t(sizeof(float)) > 4 * kWeightBytes;
  return d.src_c == 1 && d.groups == 1 && w.source_stride == d.red_c && tight && !passes &&
         (window_rows_join(d) || tap_count(d) > 2);
}

// Whether rows of a padded copy beat packed patches. They need no packing (about 10 cycles per term and panel
// of pixels, shared by out_c / kRows tiles of kRows cycles), but each row of outputs ends in a tile that is
// not full.
template <class C>
bool window_beats_patches(const Dense& d, const Cut& cut) {
  const Axis& w = d.axis[2];
  if (w.taps < 2 || w.step != 1 || cut.tap_blocks > 1) return false;
  const std::int64_t rest = w.out % kCols<C>;
  const std::int64_t columns = w.out / kCols<C> * kCols<C> + (rest > kLanes<C> ? kCols<C>
                                                              : rest > 0       ? kLanes<C> * 5 / 4
                                                                               : 0);
  return columns * d.out_c < w.out * (d.out_c + 10);
}

// Few filters leave most of a vector of channels empty. Pixels across, a term costs out_c cycles for 32 of
// them instead of 17, and turning a pixel on its way out what 8 or so cycles save.
template <class C>
bool pixels_serve(const Dense& d) {
  return kMasked<C> && d.dst_c == 1 && d.out_c <= kRows && d.groups == 1 &&
         tap_count(d) * d.red_c * (17 - d.out_c) >= 272 &&
         window_beats_patches<C>(d, make_cut(d, false, most_depth(d, false), 1));
}

// Whether the result is written around the caches: it is larger than they are, its rows are whole lines, and
// a sum is complete before the next tile's. Smaller ones are left to the caches, where the next layer finds
// them.
template <class C>
bool streaming_serves(const Dense& d, const Plan<C>& p) {
  constexpr std::int64_t line = 64 / sizeof(C);
  const std::int64_t bytes = p.pixels * d.groups * d.out_c * std::int64_t(sizeof(C));
  if (CONVNORM_VECTOR_BYTES < 32 || p.cut.count() > 1 || bytes < 2 * kStreamBytes) return false;
  if (!p.channel_rows) return d.dst_c % line == 0;
  bool whole = d.dst_n % line == 0;
  for (const Axis& a : d.axis) whole = whole && a.out_stride % line == 0;
  return whole;
}

// Tasks of whole rows of one plane, as many as make about kPixelBlock pixels; long rows are cut.
inline bool rows_are_cut(const Dense& d) { return d.axis[2].out > 2 * kPixelBlock; }
inline std::int64_t task_lines(const Dense& d) {
  return rows_are_cut(d) ? 1 : imin(d.axis[1].out, ceil_div(kPixelBlock, d.axis[2].out));
}

// The padded copy of all channels under a task.
inline constexpr std::int64_t kCopyBytes = CONVNORM_VECTOR_BYTES == 64 ? 1 << 20 : 256 << 10;  // half of L2
template <class C>
std::int64_t copy_bytes(const Dense& d) {
  const auto span = [](const Axis& a, std::int64_t out) {
    const std::int64_t reach = (a.taps - 1) * a.offset_step;
    return (out - 1) * a.step + imax(reach, -reach) + 1;
  };
  const std::int64_t width = rows_are_cut(d) ? kPixelBlock : d.axis[2].out;
  return d.axis[0].taps * span(d.axis[1], task_lines(d)) * span(d.axis[2], width) * d.red_c *
         std::int64_t(sizeof(C));
}

template <class C>
void cut_planes(const Dense& d, Plan<C>& p) {
  const std::int64_t width = d.axis[2].out, height = d.axis[1].out, lines = task_lines(d);
  const bool pieces = rows_are_cut(d);
  p.plane = pieces ? width : width * height;
  p.unit = pieces ? kPixelBlock : ceil_div(height, ceil_div(height, lines)) * width;
  p.pixel_blocks = d.n * d.axis[0].out * (pieces ? height : 1) * ceil_div(p.plane, p.unit);
}

// The sums of a window can be made in two levels, channels then taps, and torch's small ones are: those of a
// single tap cannot, and may be as long as a common number of channels.
inline std::int64_t chain(const Cut& cut) {
  const std::int64_t limit = chain_limit(cut.taps * cut.channels);
  return cut.taps == 1 ? imax(64, limit) : limit;
}

// same_type: storage is the compute type.
template <class C>
Plan<C> make_plan(const Dense& d, bool same_type) {
  Plan<C> p{};
  p.pixels = d.n * d.axis[0].out * d.axis[1].out * d.axis[2].out;
  p.turned = same_type && p.pixels > 0 && pixels_serve<C>(d);
  p.channel_rows = d.dst_c == 1 && !(d.out_c == 1 && d.axis[2].out_stride == 1) && !p.turned;
  p.copied = p.channel_rows && p.pixels > 0 && copy_serves(d) && copy_bytes<C>(d) <= kCopyBytes;
  const std::int64_t whole =
      p.copied && window_rows_join(d) ? d.axis[2].taps : 1;  // a window row of few channels
  p.cut = make_cut(d, p.channel_rows, most_depth(d, p.channel_rows), whole);
  p.groups = d.groups;
  p.pixel_blocks = imax(1, ceil_div(p.pixels, kPixelBlock));
  p.panel = p.channel_rows ? kCols<C> : kRows;
  p.panels = ceil_div(d.out_c, p.panel);
  p.weights = p.panels * p.panel * tap_count(d) * d.red_c;
  const bool readable = p.channel_rows && same_type && d.src_c == 1;
  p.in_place = readable && rows_follow(d, p.cut);
  p.indirect = readable && !p.in_place && !p.copied && d.red_c / p.cut.channel_blocks >= kLeastIndirect;
  p.paired = p.indirect && d.out_c == kLanes<C> && p.cut.channel_blocks == 1;
  p.chain = chain(p.cut);
  p.pixel_rows = !p.channel_rows && same_type && pixels_follow(d, p.cut) && d.axis[2].source_stride == 1;
  p.source_rows = p.pixel_rows && source_rows_serve<C>(d);
  const bool unit_rows = d.axis[2].source_stride == 1 && d.axis[2].out_stride == 1;
  p.windowed = p.copied || p.turned ||
               (!p.channel_rows && p.pixels > 0 && unit_rows && window_beats_patches<C>(d, p.cut));
  p.streamed = same_type && !p.turned && streaming_serves(d, p);
  if (p.windowed) cut_planes(d, p);
  if (!p.channel_rows) {
    const std::int64_t most = imax(1, p.most_pixels()), spans = ceil_div(most, pixel_span<C>(d, p.cut));
    p.span = ceil_div(ceil_div(most, spans), kCols<C>) * kCols<C>;
  }
  p.group_span = p.indirect ? imin(p.groups, kGroupSpan) : 1;
  // Few pixels: cut channels too, so that each thread has two tasks. An element's sum is the same in any cut.
  const std::int64_t threads = parallel_width();
  const std::int64_t wanted = threads == 1 ? 1 : ceil_div(2 * threads, p.group_blocks() * p.pixel_blocks);
  p.channel_blocks = imin(p.panels, imax(1, imin(wanted, d.out_c / kLeastChannels)));
  return p;
}

}  // namespace
}  // namespace convnorm::conv
