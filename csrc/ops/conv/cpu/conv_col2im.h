// Gradient by input of few channels (a stem's three), channels_last: a vector of channels would be mostly
// empty, so the columns of the product are all channels and taps of a window, and col2im adds them up.
//
//   product[x][(t_h, t_w, c)] = sum over k of gout[k, x] * w[k, c, t]     the pixels x of a row of gout
//   strip[h][x * stride + t_w][c] += product[x][(t_h, t_w, c)]            runs of taps_w * channels
//   neighbours
//
//   for task = (image, plane, block of rows) of the result:               in parallel
//     clear the strip: its rows, as wide as all windows reach, so that padding needs no test
//     for each plane and row of gout that reaches it, 48 pixels at a time:  product in L1, then its runs
//     write the strip's inside
//
// A stride needs no sub-problems of its own. Runs of neighbouring pixels overlap, and a load that spans two
// fresh stores waits for both: so every `apart`-th pixel is added in turn. Rows of gout at a block's edge
// are multiplied by the taps that reach it only. The order of an element's sum depends on the shape alone.
//
// Include after conv_igemm_pack.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kProductPixels = 48;  // a multiple of kRows
inline constexpr std::int64_t kStripElements = 64 << 10;

struct Col2im {
  const Params* p;
  std::int64_t filters, channels;
  std::int64_t run, columns;   // elements per row of the window, and in all
  std::int64_t ld;             // columns in whole vectors
  std::int64_t apart;          // pixels whose runs do not meet
  std::int64_t pitch;          // of a row of the strip
  std::int64_t block, blocks;  // rows of the result per task
};

template <class C>
Col2im make_col2im(const Params& p) {
  const Window& w = p.window;
  Col2im m{&p, p.output.c, p.input.c, w.kernel[2] * p.input.c, 0, 0, 0, 0, 0, 0};
  m.columns = w.kernel[1] * m.run;
  m.ld = ceil_div(m.columns, kCols<C>) * kCols<C>;
  const std::int64_t step = w.stride[2] * m.channels;
  m.apart = ceil_div(ceil_div(m.run, kLanes<C>) * kLanes<C>, step);
  const std::int64_t reached = (p.output.size[2] - 1) * w.stride[2] + w.kernel[2];
  m.pitch = (reached > p.input.size[2] + w.pad[2] ? reached : p.input.size[2] + w.pad[2]) * m.channels;
  // Few rows of gout in two blocks, but enough blocks for the threads: no sum depends on the cut.
  const std::int64_t most = imax(1, imin(8 * reach(w, 1), kStripElements / m.pitch));
  const std::int64_t planes = imax(1, p.input.n * p.input.size[0]);
  const std::int64_t wanted = ceil_div(2 * parallel_width(), planes);
  m.blocks = imax(ceil_div(p.input.size[1], most), imin(wanted, ceil_div(p.input.size[1], reach(w, 1))));
  m.block = ceil_div(p.input.size[1], imax(1, m.blocks));
  return m;
}

// Weights as panels [t_d][columns / kCols][filter][kCols].
template <class D, class C>
void pack_columns(const Col2im& m, C* out) {
  const Weight& w = m.p->weight;
  const Dims& taps = m.p->window.kernel;
  zero(out, taps[0] * m.filters * m.ld);
  for (std::int64_t d = 0; d < taps[0]; ++d, out += m.filters * m.ld)
    for (std::int64_t j = 0; j < m.columns; ++j) {
      const std::int64_t h = j / m.run, t = j % m.run / m.channels, c = j % m.channels;
      const D* from = static_cast<const D*>(w.data) + d * w.stride[0] + h * w.stride[1] + t * w.stride[2] +
                      c * w.stride_c;
      C* to = out + j / kCols<C> * kCols<C> * m.filters + j % kCols<C>;
      for (std::int64_t k = 0; k < m.filters; ++k) to[k * kCols<C>] = load1(from + k * w.stride_k);
    }
}

template <class C>
struct Col2imTask {
  const Col2im* m;
  const C* weights;
  C *strip, *product, *pixels;
  std::int64_t* lines;
  std::int64_t n, d, h0, h1;  // of the result
};

// The first `count` pixels of a row of gout: in place, or widened.
template <class C, class D>
const C* gout_rows(const Col2imTask<C>& t, const D* row, std::int64_t count, std::int64_t* lda) {
  const View5& g = t.m->p->output;
  if constexpr (std::is_same_v<C, D>) {
    *lda = g.stride[2];
    return row;
  } else {
    *lda = t.m->filters;
    for (std::int64_t x = 0; x < count; ++x)
      copy_run(t.pixels + x * t.m->filters, row + x * g.stride[2], t.m->filters);
    return t.pixels;
  }
}

// The products of `count` pixels with the columns [begin, end) of one t_d, to whole vectors.
template <class C>
void multiply_columns(const Col2imTask<C>& t, const C* rows, std::int64_t lda, const C* weights,
                      std::int64_t count, std::int64_t begin, std::int64_t end) {
  const Col2im& m = *t.m;
  TileBlock<C> tiles{};
  tiles.depth = m.filters;
  tiles.piece = piece_length(m.filters, chain_limit(m.filters));
  tiles.lda = lda;
  tiles.a_step = kRows * lda;
  tiles.c_step = kCols<C>;
  tiles.b_step = kCols<C> * m.filters;
  tiles.start = Start::zero;
  const auto& fn = kTiles<C, Form::by_rows>.fn;
  const std::int64_t first = begin / kCols<C>, last = ceil_div(end, kCols<C>);
  const bool narrow = end - (last - 1) * kCols<C> <= kLanes<C>;  // the last panel is half empty
  for (int part = 0; part < 2; ++part) {
    const std::int64_t panel = part == 0 ? first : last - 1;
    tiles.columns = part == 0 ? last - first - narrow : narrow;
    if (tiles.columns == 0) continue;
    tiles.b = weights + panel * tiles.b_step;
    tiles.c = t.product + panel * kCols<C>;
    tiles.a = rows;
    tiles.c_rows = t.lines;
    tiles.rows = count / kRows;
    if (tiles.rows > 0) fn[kRows][2 - part](tiles);
    if (count % kRows == 0) continue;
    tiles.a += tiles.rows * tiles.a_step;
    tiles.c_rows += tiles.rows * kRows;
    tiles.rows = 1;
    fn[count % kRows][2 - part](tiles);
  }
}

// Adds `run` elements to each of the strip's places: the last vector is cut to length.
template <class C>
void add_runs(const Col2im& m, const C* product, std::int64_t count, C* strip) {
  constexpr int L = kLanes<C>;
  const std::int64_t whole = m.run / L, step = m.p->window.stride[2] * m.channels;
  ivec<C> mask;
  for (int i = 0; i < L; ++i) mask[i] = i < m.run % L ? -1 : 0;
  for (std::int64_t first = 0; first < imin(m.apart, count); ++first)
    for (std::int64_t x = first; x < count; x += m.apart) {
      const C* from = product + x * m.ld;
      C* to = strip + x * step;
      for (std::int64_t v = 0; v < whole; ++v, from += L, to += L) store(to, load(to) + load(from));
      if (m.run % L) store(to, load(to) + bits_as<vec<C>>(bits_as<ivec<C>>(load(from)) & mask));
    }
}

// What one row of gout, under tap t_d, adds to the strip.
template <class C, class D>
void add_gout_row(const Col2imTask<C>& t, std::int64_t od, std::int64_t oh, std::int64_t td) {
  const Col2im& m = *t.m;
  const View5& g = m.p->output;
  const Window& w = m.p->window;
  const std::int64_t h = oh * w.stride[1] - w.pad[1] - t.h0, dil = w.dil[1];
  const std::int64_t th0 = h < 0 ? ceil_div(-h, dil) : 0;
  const std::int64_t th1 = imin(w.kernel[1], h >= t.h1 - t.h0 ? 0 : ceil_div(t.h1 - t.h0 - h, dil));
  if (th0 >= th1) return;
  const D* row = static_cast<const D*>(g.data) + t.n * g.stride_n + od * g.stride[0] + oh * g.stride[1];
  const C* weights = t.weights + td * m.filters * m.ld;
  for (std::int64_t x = 0; x < g.size[2]; x += kProductPixels) {
    const std::int64_t count = imin(kProductPixels, g.size[2] - x);
    std::int64_t lda;
    const C* rows = gout_rows<C, D>(t, row + x * g.stride[2], count, &lda);
    multiply_columns(t, rows, lda, weights, count, th0 * m.run, th1 * m.run);
    for (std::int64_t th = th0; th < th1; ++th)
      add_runs(m, t.product + th * m.run, count,
               t.strip + (h + th * dil) * m.pitch + x * w.stride[2] * m.channels);
  }
}

// The rows of the strip without its margins.
template <class C, class D>
void write_strip(const Col2imTask<C>& t) {
  const Col2im& m = *t.m;
  const View5& in = m.p->input;
  D* image = static_cast<D*>(in.data) + t.n * in.stride_n + t.d * in.stride[0];
  for (std::int64_t h = t.h0; h < t.h1; ++h) {
    const C* from = t.strip + (h - t.h0) * m.pitch + m.p->window.pad[2] * m.channels;
    D* to = image + h * in.stride[1];
    const bool dense = in.stride[2] == m.channels;
    const std::int64_t pieces = dense ? 1 : in.size[2], n = dense ? in.size[2] * m.channels : m.channels;
    for (std::int64_t i = 0; i < pieces; ++i, from += n, to += in.stride[2]) {
      std::int64_t k = 0;
      for (; k + kLanes<C> <= n; k += kLanes<C>) store(to + k, load(from + k));
      for (; k < n; ++k) store1(to + k, from[k]);
    }
  }
}

template <class C, class D>
void run_col2im_task(const Col2imTask<C>& t) {
  const Col2im& m = *t.m;
  const Window& w = m.p->window;
  const Dims& out = m.p->output.size;
  zero(t.strip, (t.h1 - t.h0) * m.pitch);
  const std::int64_t oh0 = imax(0, ceil_div(imax(0, t.h0 + w.pad[1] - reach(w, 1) + 1), w.stride[1]));
  const std::int64_t oh1 = imin(out[1], (t.h1 - 1 + w.pad[1]) / w.stride[1] + 1);
  for (std::int64_t td = 0; td < w.kernel[0]; ++td) {
    const std::int64_t from = t.d + w.pad[0] - td * w.dil[0];
    if (from < 0 || from % w.stride[0] != 0 || from / w.stride[0] >= out[0]) continue;
    for (std::int64_t oh = oh0; oh < oh1; ++oh) add_gout_row<C, D>(t, from / w.stride[0], oh, td);
  }
  write_strip<C, D>(t);
}

template <class D>
void col2im(const Params& p) {
  using C = compute_t<D>;
  const Col2im m = make_col2im<C>(p);
  const std::int64_t packed = p.window.kernel[0] * m.filters * m.ld;
  C* weights = static_cast<C*>(scratch_bytes(Slot::shared, packed * sizeof(C)));
  pack_columns<D>(m, weights);
  const std::int64_t tasks = p.input.n * p.input.size[0] * m.blocks;
  parallel_for(tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    Col2imTask<C> t = carve_scratch(Slot::local, [&](Arena& arena) {
      Col2imTask<C> task{};
      task.strip = arena.take<C>(m.block * m.pitch + kSlack<C>);
      task.product = arena.take<C>(kProductPixels * m.ld + kSlack<C>);
      task.pixels = arena.take<C>(kProductPixels * m.filters);
      task.lines = arena.take<std::int64_t>(kProductPixels);
      return task;
    });
    t.m = &m;
    t.weights = weights;
    for (std::int64_t i = 0; i < kProductPixels; ++i) t.lines[i] = i * m.ld;
    for (std::int64_t i = begin; i < end; ++i) {
      t.n = i / m.blocks / p.input.size[0];
      t.d = i / m.blocks % p.input.size[0];
      t.h0 = imin(p.input.size[1], i % m.blocks * m.block);
      t.h1 = imin(p.input.size[1], t.h0 + m.block);
      if (t.h0 < t.h1) run_col2im_task<C, D>(t);
    }
  });
}

void run_col2im(const Params& p) {
  dispatch(p.dtype, [&](auto tag) { col2im<decltype(tag)>(p); });
}

}  // namespace
}  // namespace convnorm::conv
