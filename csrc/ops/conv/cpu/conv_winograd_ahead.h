// What is asked for while products are made: the weights of the next one, and of the image what the next
// tiles read.
//
// A product's weights, up to 32 KB per 256 channels, come from where U is; the hardware's own fetching of
// them begins anew in each page. Where U is not in L2, multiplying waits for them: products of 256 channels
// took 1.2 times as long.
//
// Transforming tiles waits for memory: 64 channels of 112x112 at step 2 spend a third of their time on
// reading what L2 does not hold. So every fourth product of a block (36 per panel of filters) asks for its
// share of the pixels that the tiles a row of tiles further on will be the first to read: one stretch in
// channels_last, otherwise one of each channel's plane.
//
// Include after conv_winograd_tiles.h and cpu/microkernel.h.
#pragma once

namespace convnorm::conv {
namespace {

class WinogradAhead {
 public:
  WinogradAhead() = default;

  // For tiles [t0, t1), while those before them are multiplied.
  WinogradAhead(const Dense& d, const Grid& g, std::int64_t t0, std::int64_t t1) {
    const std::int64_t row_of_tiles = g.gap_h * g.columns;
    const std::int64_t begin = t0 + row_of_tiles, end = imin(g.tiles, t1 + row_of_tiles);
    if (begin >= end) return;
    const bool last = d.src_c == 1;
    const std::int64_t image = g.planes * g.rows * g.columns;
    const std::int64_t stop = last ? end : imin(end, (begin / image + 1) * image - 1);  // of one image
    start_ = at_ = first_read_by(d, g, begin);
    length_ = first_read_by(d, g, stop) - at_;
    planes_ = last ? 1 : d.red_c;
    next_plane_ = d.src_c;
  }

  // Lets a product ask for so many elements: of the image, or of the weights of the next one.
  void ask_in(TileBlock<float>& block, std::int64_t elements, const float* weights) {
    if (planes_ == 0 || ++products_ % 4 != 0) {
      block.ahead = weights;
      block.ahead_end = weights + block.depth * kCols<float>;
      return;
    }
    block.ahead = at_;
    block.ahead_end = start_ + length_;
    at_ += elements;
    if (at_ < block.ahead_end) return;
    --planes_;
    at_ = start_ += next_plane_;
  }

 private:
  // Rows of tiles share the pixels under them evenly.
  static const float* first_read_by(const Dense& d, const Grid& g, std::int64_t t) {
    const Axis &a = d.axis[0], &h = d.axis[1];
    const std::int64_t line = t / g.columns, image = line / g.rows / g.planes;
    const std::int64_t plane =
        line / g.rows % g.planes * a.step + a.offset + imax(0, (a.taps - 1) * a.offset_step);
    const std::int64_t height = g.tile * h.step * h.source_stride;
    return static_cast<const float*>(d.src) + image * d.src_n + imin(plane, a.source - 1) * a.source_stride +
           line % g.rows * height + t % g.columns * height / g.columns;
  }

  const float *start_ = nullptr, *at_ = nullptr;  // of the stretch, and what is asked for next
  std::int64_t length_ = 0, planes_ = 0, next_plane_ = 0, products_ = 0;
};

}  // namespace
}  // namespace convnorm::conv
