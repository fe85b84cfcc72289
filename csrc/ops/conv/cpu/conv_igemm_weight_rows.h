// By weight of 1x1 windows in NCHW, where both factors are rows of pixels:
//
//   gw[k][c] = sum over images and pixels of gout[n][k][pixel] * in[n][c][pixel]
//
// The side of more channels is read where it lies (tile rows); the other is turned into panels
// [channels / kCols][pixel][kCols] (columns), which costs as much as the sums of 16 rows.
//
//   for task = (group, block of rows, block of columns, split of the pixels):     in parallel, by shape alone
//     for chunk of at most 192 pixels of a plane:  turn the columns (L2), run tiles, adding to the task's
//     sums
//   add the splits in order and write gw                                         in parallel over k
//
// Include after conv_igemm_weight.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kRowBlock = 512, kColumnBlock = 256;  // a chunk of both fits half of L2

// One side of the product: channels of a group, as rows of pixels.
template <class C>
struct RowSide {
  const C* data;
  std::int64_t image, channel, channels;
  const C* row(std::int64_t n, std::int64_t group, std::int64_t c) const {
    return data + n * image + (group * channels + c) * channel;
  }
};

template <class C>
struct RowsPlan {
  RowSide<C> rows, columns;
  bool filters_down;  // the rows are gout's
  std::int64_t groups, plane, pixels, row_blocks, column_blocks, splits, ld;
  std::int64_t tasks() const { return groups * row_blocks * column_blocks * splits; }
  std::int64_t part() const { return rows.channels * ld; }
  std::int64_t first_row(std::int64_t i) const {
    return imin(rows.channels, ceil_div(rows.channels, row_blocks * kRows) * kRows * i);
  }
  std::int64_t first_column(std::int64_t i) const {
    return imin(columns.channels, ceil_div(columns.channels, column_blocks * kCols<C>) * kCols<C> * i);
  }
};

// Where rows fall into few sets of L1 they would push each other out.
template <class C>
bool weight_rows_serve(const Dense& d, bool same_type) {
  const auto spread = [](std::int64_t step) { return step * std::int64_t(sizeof(C)) % 1024 != 0; };
  return same_type && d.axis[2].taps == 1 && d.axis[2].source_stride == 1 && d.axis[2].out_stride == 1 &&
         pixels_follow(d, make_cut(d, false, kMaxDepth)) && d.dst_c > 1 && d.src_c > 1 && spread(d.dst_c) &&
         spread(d.src_c) && imin(d.out_c, d.red_c) >= kLanes<C> && d.n > 0;
}

template <class C>
RowsPlan<C> make_rows_plan(const Dense& d) {
  RowsPlan<C> p{};
  const RowSide<C> gout{static_cast<const C*>(d.dst), d.dst_n, d.dst_c, d.out_c};
  const RowSide<C> in{static_cast<const C*>(d.src), d.src_n, d.src_c, d.red_c};
  p.filters_down = d.out_c >= d.red_c;
  p.rows = p.filters_down ? gout : in;
  p.columns = p.filters_down ? in : gout;
  p.groups = d.groups;
  p.plane = d.axis[2].out;
  p.pixels = d.n * p.plane;
  p.ld = round_up_line<C>(p.columns.channels);
  p.column_blocks = ceil_div(p.columns.channels, kColumnBlock);
  const std::int64_t blocks = p.groups * p.column_blocks * ceil_div(p.rows.channels, kLeastDepth);
  p.splits = imax(1, imin(ceil_div(kWantedWeightTasks, blocks), p.pixels / kLeastSplit));
  // Shorter blocks where threads would have nothing to do; an element's sum is the same in any.
  std::int64_t block = kRowBlock;
  do {
    p.row_blocks = ceil_div(p.rows.channels, block);
    block /= 2;
  } while (p.tasks() < 2 * parallel_width() && block >= kLeastDepth);
  return p;
}

template <class C>
struct RowsTask {
  const RowsPlan<C>* plan;
  std::int64_t group, row0, row1, column0, column1, pixel0, pixel1;
  C *part, *panels;
  const std::int64_t* lines;
  double* bias;  // of the filters of this (split, group), or null
};

// Adds a chunk of gout's rows [k0, k1): four short sums per row, joined in double.
template <class C>
void add_row_sums(const RowSide<C>& gout, std::int64_t n, std::int64_t group, std::int64_t k0,
                  std::int64_t k1, std::int64_t x, std::int64_t pixels, double* sums) {
  constexpr int L = kLanes<C>, kParts = 4;
  for (std::int64_t k = k0; k < k1; ++k) {
    const C* row = gout.row(n, group, k) + x;
    vec<C> part[kParts];
    for (int i = 0; i < kParts; ++i) part[i] = vec<C>{};
    std::int64_t at = 0;
    for (; at + kParts * L <= pixels; at += kParts * L)
      for (int i = 0; i < kParts; ++i) part[i] += load(row + at + i * L);
    for (; at + L <= pixels; at += L) part[0] += load(row + at);
    if (at < pixels) part[1] += load_n(row + at, pixels - at);
    for (int i = 0; i < kParts; ++i)
      for (int lane = 0; lane < L; ++lane) sums[k] += double(part[i][lane]);
  }
}

// The columns of a task as panels[columns / kCols][pixels][kCols].
template <class C>
void turn_columns(const RowsTask<C>& t, std::int64_t n, std::int64_t x, std::int64_t pixels) {
  C* panel = t.panels;
  for (std::int64_t c = t.column0; c < t.column1; c += kCols<C>, panel += kCols<C> * pixels) {
    const std::int64_t lanes = imin(kCols<C>, t.column1 - c);
    if (lanes < kCols<C>) zero(panel, pixels * kCols<C>);
    transpose_lanes(t.plan->columns.row(n, t.group, c) + x, t.plan->columns.channel, lanes, pixels, panel,
                    kCols<C>);
  }
}

// Pixels [x, x + pixels) of image n.
template <class C>
void run_chunk(const RowsTask<C>& t, std::int64_t n, std::int64_t x, std::int64_t pixels, bool first) {
  const RowsPlan<C>& plan = *t.plan;
  turn_columns(t, n, x, pixels);
  TileBlock<C> tiles{};
  tiles.columns = 1;
  tiles.depth = pixels;
  tiles.piece = piece_length(pixels, chain_limit(t.pixel1 - t.pixel0));
  tiles.start = first ? Start::zero : Start::add_to_c;
  tiles.lda = plan.rows.channel;
  for (std::int64_t c = t.column0; c < t.column1; c += kCols<C>) {
    const std::int64_t vectors = ceil_div(imin(kCols<C>, t.column1 - c), kLanes<C>);
    tiles.a = plan.rows.row(n, t.group, t.row0) + x;
    tiles.b = t.panels + (c - t.column0) * pixels;
    tiles.c = t.part + c;
    tiles.c_rows = t.lines + t.row0;
    run_equal_tiles<C, Form::by_rows>(tiles, t.row1 - t.row0, vectors);
  }
}

template <class C>
void run_rows_task(const RowsTask<C>& t) {
  const RowsPlan<C>& plan = *t.plan;
  for (std::int64_t at = t.pixel0, pixels; at < t.pixel1; at += pixels) {
    const std::int64_t n = at / plan.plane, x = at % plan.plane;
    pixels = equal_chunk(at, t.pixel1, plan.plane, kChunk);
    run_chunk(t, n, x, pixels, at == t.pixel0);
    if (!t.bias) continue;
    if (plan.filters_down)
      add_row_sums(plan.rows, n, t.group, t.row0, t.row1, x, pixels, t.bias);
    else
      add_row_sums(plan.columns, n, t.group, t.column0, t.column1, x, pixels, t.bias);
  }
}

// gw of filters [k0, k1) of a group.
template <class C>
void write_row_sums(const Dense& d, const RowsPlan<C>& plan, const Parts<C>& parts, std::int64_t group,
                    std::int64_t k0, std::int64_t k1) {
  C* out = static_cast<C*>(d.weight) + group * d.weight_group;
  if (plan.filters_down) {
    for (std::int64_t k = k0; k < k1; ++k)
      write_row(parts, k * plan.ld, d.red_c, out + k * d.weight_out, d.weight_red);
  } else if (d.weight_red == 1) {
    write_turned(parts, k0, plan.ld, k1 - k0, d.red_c, out + k0 * d.weight_out, d.weight_out);
  } else {
    for (std::int64_t c = 0; c < d.red_c; ++c)
      write_row(parts, c * plan.ld + k0, k1 - k0, out + k0 * d.weight_out + c * d.weight_red, d.weight_out);
  }
}

template <class C>
void by_weight_rows(const Dense& d) {
  const RowsPlan<C> plan = make_rows_plan<C>(d);
  const std::int64_t all_out = plan.groups * d.out_c, sums = plan.splits * plan.groups * plan.part();
  const auto carve = [&](Arena& arena) {
    return std::tuple{arena.take<double>(plan.splits * all_out), arena.take<C>(sums),
                      arena.take<std::int64_t>(plan.rows.channels)};
  };
  const auto [bias, parts, lines] = carve_scratch(Slot::shared, carve);
  for (std::int64_t i = 0; i < plan.splits * all_out; ++i) bias[i] = 0;
  for (std::int64_t m = 0; m < plan.rows.channels; ++m) lines[m] = m * plan.ld;

  parallel_for(plan.tasks(), 1, [&](std::int64_t begin, std::int64_t end) {
    RowsTask<C> t{};
    t.plan = &plan;
    t.lines = lines;
    const std::int64_t columns = round_up_line<C>(imin(plan.columns.channels, kColumnBlock + kCols<C>));
    t.panels = static_cast<C*>(scratch_bytes(Slot::local, (columns * kChunk + kSlack<C>)*sizeof(C)));
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t split = i % plan.splits, column = i / plan.splits % plan.column_blocks;
      const std::int64_t row = i / plan.splits / plan.column_blocks % plan.row_blocks;
      t.group = i / plan.splits / plan.column_blocks / plan.row_blocks;
      t.row0 = plan.first_row(row), t.row1 = plan.first_row(row + 1);
      t.column0 = plan.first_column(column), t.column1 = plan.first_column(column + 1);
      t.pixel0 = plan.pixels * split / plan.splits, t.pixel1 = plan.pixels * (split + 1) / plan.splits;
      t.part = parts + (split * plan.groups + t.group) * plan.part();
      const bool sum = d.bias && (plan.filters_down ? column : row) == 0;
      t.bias = sum ? bias + split * all_out + t.group * d.out_c : nullptr;
      if (t.row1 > t.row0 && t.column1 > t.column0) run_rows_task(t);
    }
  });

  const std::int64_t panels = ceil_div(d.out_c, kCols<C>);
  parallel_for(plan.groups * panels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t group = i / panels, k0 = i % panels * kCols<C>, k1 = imin(d.out_c, k0 + kCols<C>);
      write_row_sums(d, plan, {parts + group * plan.part(), plan.splits, plan.groups * plan.part()}, group,
                     k0, k1);
      if (d.bias) write_bias<C>(d, bias, plan.splits, group * d.out_c + k0, group * d.out_c + k1);
    }
  });
}

void run_by_weight(const Dense& d) {
  dispatch(d.dtype, [&](auto tag) {
    using D = decltype(tag);
    using C = compute_t<D>;
    weight_rows_serve<C>(d, std::is_same_v<C, D>) ? by_weight_rows<C>(d) : by_weight<D>(d);
  });
}

}  // namespace
}  // namespace convnorm::conv
