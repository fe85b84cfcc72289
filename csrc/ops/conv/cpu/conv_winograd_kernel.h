// Winograd convolution of a Dense problem (3x3, stride 1, either direction of the taps), see conv_winograd_transform.h.
//
// 36 matrix products M[xi] = V[xi] U[xi]: rows are tiles, columns output channels, the sum runs over input channels.
// Two schedules:
//
//   by tiles (many tiles):            U of all filters once, shared
//     for task = block of tiles:      V of the block stays in L2
//       for group of filter panels:   36 products, then the output transform
//   by filters (few tiles, much U):   V of all tiles once, shared (bounded: kMostTiles at a time)
//     for task = panel of filters:    for block of channels: U of the panel, which stays in L2; 36 products added up
//                                     then the output transform
//
// An element's sum is over the same blocks of channels in the same order wherever its tile and panel are computed.
#pragma once
#include <cstdlib>
namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kPanel = kCols<float>;

inline int tune(const char* n, int v) { const char* s = getenv(n); return s ? atoi(s) : v; }

struct WinogradPlan {
  Grid grid;
  bool by_filters;
  std::int64_t panels;        // of kPanel filters
  std::int64_t block;         // tiles of a task (by filters: at a time)
  std::int64_t group;         // panels whose products are held at a time
  std::int64_t depth, depths;  // channels added up at a time
  std::int64_t v_row, v_plane, u_plane, m_plane;

  std::int64_t first_channel(std::int64_t i, std::int64_t channels) const { return imin(channels, i * depth); }
  std::int64_t blocks() const { return ceil_div(grid.tiles, block); }
};

// An odd number of cache lines: 36 planes written at a time fall into different sets of L1.
inline std::int64_t odd_plane(std::int64_t n) { return (ceil_div(n, 16) | 1) * 16; }

inline WinogradPlan make_winograd_plan(const Dense& d) {
  WinogradPlan p{};
  p.grid = make_grid(d);
  p.panels = ceil_div(d.out_c, kPanel);
  p.by_filters = tune("WINO_MODE", 0);
  p.block = p.by_filters ? tune("WINO_MOST", 128) : tune("WINO_T", 30);
  p.block = imin(p.block, p.grid.tiles);
  p.group = p.by_filters ? 1 : imin(p.panels, tune("WINO_G", 1));
  const std::int64_t most = p.by_filters ? tune("WINO_CB", 128) : tune("WINO_D", 320);
  p.depths = ceil_div(d.red_c, most);
  p.depth = ceil_div(ceil_div(d.red_c, p.depths), kL) * kL;
  p.depths = ceil_div(d.red_c, p.depth);
  p.v_row = ceil_div(d.red_c, kL) * kL;
  p.v_plane = odd_plane(p.block * p.v_row);
  p.u_plane = odd_plane((p.by_filters ? p.depth : d.red_c) * kPanel);
  p.m_plane = odd_plane(p.block * p.group * kPanel);
  return p;
}

// U of channels [c0, c1) of one panel, to u[xi * plane + (c - c0) * kPanel]. Filters are first copied to `raw`, a vector of
// filters per tap, in the order in which they can be turned in registers.
inline constexpr std::int64_t kRawChannels = 32;
inline constexpr std::int64_t kRaw = kRawChannels * 9 * kPanel;

inline void weight_panel(const Dense& d, std::int64_t panel, std::int64_t c0, std::int64_t c1, float* raw, float* u,
                         std::int64_t plane) {
  const std::int64_t k0 = panel * kPanel, lanes = imin(kPanel, d.out_c - k0);
  const bool channel_last = d.axis[2].weight_step != 1;  // taps, then channels
  for (std::int64_t c = c0; c < c1; c += kRawChannels) {
    const std::int64_t channels = imin(kRawChannels, c1 - c);
    pack_weight_panel<float, float>(d, 0, Block{0, 9, c, c + channels, 0}, channel_last, k0, lanes, kPanel, raw);
    std::int64_t tap = channel_last ? channels * kPanel : kPanel, row = 3 * tap;
    const std::int64_t channel = channel_last ? kPanel : 9 * kPanel;
    const float* from = raw;
    if (d.axis[1].offset_step < 0) from += 2 * row, row = -row;
    if (d.axis[2].offset_step < 0) from += 2 * tap, tap = -tap;
    for (std::int64_t i = 0; i < channels; ++i)
      for (std::int64_t v = 0; v < kPanel; v += kL)
        transform_weight(from + i * channel + v, row, tap, u + (c - c0 + i) * kPanel + v, plane);
  }
}

// m[xi] (+)= v[xi] u[xi] for channels [c0, c1), whose weights start at u, and `panels` panels u_panel apart.
inline void multiply(const WinogradPlan& p, const float* v, std::int64_t tiles, std::int64_t c0, std::int64_t c1,
                     const float* u, std::int64_t u_panel, std::int64_t panels, float* m) {
  Tile<float> tile{};
  tile.depth = c1 - c0;
  tile.lda = p.v_row;
  tile.ldb = kPanel;
  tile.start = c0 == 0 ? Start::zero : Start::add_to_c;
  const std::int64_t row = p.group * kPanel;
  for (std::int64_t xi = 0; xi < kPoints; ++xi)
    for (std::int64_t k = 0; k < panels; ++k) {
      tile.b = u + k * u_panel + xi * p.u_plane;
      for (std::int64_t t = 0; t < tiles; t += kRows) {
        const std::int64_t height = imin(kRows, tiles - t);
        tile.a = v + xi * p.v_plane + t * p.v_row + c0;
        for (std::int64_t i = 0; i < height; ++i) tile.c[i] = m + xi * p.m_plane + (t + i) * row + k * kPanel;
        kTiles<float, Form::by_rows>.fn[height][kColVecs](tile);
      }
    }
}

// The outputs of one panel of filters for tiles [t0, t1), whose products start at m.
inline void output_panel(const Dense& d, const WinogradPlan& p, std::int64_t panel, std::int64_t t0, std::int64_t t1,
                         float* m, float* strip) {
  for (std::int64_t v = 0; v < kPanel; v += kL) {
    const std::int64_t k = panel * kPanel + v, lanes = imin(kL, d.out_c - k);
    if (lanes <= 0) return;
    const F bias = d.bias ? load_n(static_cast<const float*>(d.bias) + k, lanes) : F{};
    float* dst = static_cast<float*>(d.dst) + k * d.dst_c;
    each_run(p.grid, t0, t1, [&](const TileRun& run) {
      output_run(d, run, Tiles{m + v, p.group * kPanel, p.m_plane}, bias, lanes, dst, strip);
    });
  }
}

inline void winograd_by_tiles(const Dense& d, const WinogradPlan& p) {
  const std::int64_t u_panel = kPoints * p.u_plane;
  float* u = static_cast<float*>(scratch_bytes(Slot::shared, p.panels * u_panel * sizeof(float)));
  parallel_for(p.panels, 1, [&](std::int64_t begin, std::int64_t end) {
    float* raw = static_cast<float*>(scratch_bytes(Slot::local, (kRaw + kPanel) * sizeof(float)));
    for (std::int64_t k = begin; k < end; ++k) weight_panel(d, k, 0, d.red_c, raw, u + k * u_panel, p.u_plane);
  });
  parallel_for(p.blocks(), 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t v_all = kPoints * p.v_plane, m_all = kPoints * p.m_plane;
    const std::int64_t strip_all = strip_elements(imin(p.block, p.grid.columns));
    float* v = static_cast<float*>(scratch_bytes(Slot::local, (v_all + m_all + strip_all) * sizeof(float)));
    float *m = v + v_all, *strip = m + m_all;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t t0 = i * p.block, t1 = imin(p.grid.tiles, t0 + p.block);
      each_run(p.grid, t0, t1, [&](const TileRun& run) {
        input_run(d, p.grid, run, 0, d.red_c, strip, Tiles{v, p.v_row, p.v_plane});
      });
      for (std::int64_t k = 0; k < p.panels; k += p.group) {
        const std::int64_t panels = imin(p.group, p.panels - k);
        for (std::int64_t b = 0; b < p.depths; ++b) {
          const std::int64_t c0 = b * p.depth, c1 = imin(d.red_c, c0 + p.depth);
          multiply(p, v, t1 - t0, c0, c1, u + k * u_panel + c0 * kPanel, u_panel, panels, m);
        }
        for (std::int64_t j = 0; j < panels; ++j) output_panel(d, p, k + j, t0, t1, m + j * kPanel, strip);
      }
    }
  });
}

inline constexpr std::int64_t kInputChannels = 32;  // of a task of the input transform

inline void winograd_by_filters(const Dense& d, const WinogradPlan& p) {
  float* v = static_cast<float*>(scratch_bytes(Slot::shared, kPoints * p.v_plane * sizeof(float)));
  const std::int64_t strip_all = strip_elements(imin(p.block, p.grid.columns));
  for (std::int64_t t0 = 0; t0 < p.grid.tiles; t0 += p.block) {
    const std::int64_t t1 = imin(p.grid.tiles, t0 + p.block);
    parallel_for(ceil_div(d.red_c, kInputChannels), 1, [&](std::int64_t begin, std::int64_t end) {
      float* strip = static_cast<float*>(scratch_bytes(Slot::local, strip_all * sizeof(float)));
      for (std::int64_t i = begin; i < end; ++i)
        each_run(p.grid, t0, t1, [&](const TileRun& run) {
          input_run(d, p.grid, run, i * kInputChannels, imin(d.red_c, (i + 1) * kInputChannels), strip,
                    Tiles{v, p.v_row, p.v_plane});
        });
    });
    parallel_for(p.panels, 1, [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t u_all = kPoints * p.u_plane, m_all = kPoints * p.m_plane;
      float* raw = static_cast<float*>(scratch_bytes(Slot::local, (kRaw + kPanel + u_all + m_all + strip_all) * sizeof(float)));
      float *u = raw + kRaw + kPanel, *m = u + u_all, *strip = m + m_all;
      for (std::int64_t k = begin; k < end; ++k) {
        for (std::int64_t b = 0; b < p.depths; ++b) {
          const std::int64_t c0 = b * p.depth, c1 = imin(d.red_c, c0 + p.depth);
          weight_panel(d, k, c0, c1, raw, u, p.u_plane);
          multiply(p, v, t1 - t0, c0, c1, u, 0, 1, m);
        }
        output_panel(d, p, k, t0, t1, m, strip);
      }
    });
  }
}

inline void run_winograd(const Dense& d) {
  const WinogradPlan p = make_winograd_plan(d);
  p.by_filters ? winograd_by_filters(d, p) : winograd_by_tiles(d, p);
}

}  // namespace
}  // namespace convnorm::conv
