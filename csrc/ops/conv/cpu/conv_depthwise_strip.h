// Planes cut into strips, and a strip's source packed: for vectors along rows.
//
// Include after conv_depthwise_pack.h and conv_depthwise_plan.h.
#pragma once

namespace convnorm::conv {
namespace {

// How the outputs of one depth are cut, and how the source of a strip is packed: the rows that its windows
// reach, for each tap along depth. `first` is the column, of the source, that output 0 has as packed column
// 0.
struct Strips {
  std::int64_t rows, columns;              // of a strip, at most
  std::int64_t row_strips, column_strips;  // of a plane
  std::int64_t width;                      // outputs of a row
  std::int64_t first, reach;               // packed columns of one output
  PackedRow shape;
  std::int64_t slice, size;  // packed elements of a depth tap, and in all
  std::int64_t count() const { return row_strips * column_strips; }
};

// What strips are made for.
struct StripRules {
  std::int64_t row_unit, column_unit;  // rows and columns that are computed together
  std::int64_t most_rows, most_columns;
  std::int64_t bytes;  // of a packed strip, about
};

// `first` and `reach` span the taps of all phases.
template <class C>
Strips make_strips(const Dense& d, std::int64_t width, std::int64_t first, std::int64_t reach,
                   const StripRules& rules) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  constexpr std::int64_t L = kLanes<C>;
  Strips s{};
  s.width = width;
  s.first = first;
  s.reach = reach;
  s.columns = piece_of(width, rules.most_columns, rules.column_unit);
  const std::int64_t whole = ceil_div(s.columns, rules.column_unit) * rules.column_unit;
  s.shape = {w.step, (ceil_div(whole + (reach - 1) / w.step + 1, L) + 2) * L};
  const std::int64_t depth = imax(1, d.axis[0].taps);
  const std::int64_t row_bytes = depth * s.shape.pitch() * static_cast<std::int64_t>(sizeof(C));
  const std::int64_t fit = (rules.bytes / row_bytes - reach_of(h)) / h.step + 1;
  s.rows = piece_of(h.out, imin(rules.most_rows, imax(fit, rules.row_unit)), rules.row_unit);
  s.row_strips = ceil_div(h.out, s.rows);
  s.column_strips = ceil_div(width, s.columns);
  const std::int64_t rows = ceil_div(s.rows, rules.row_unit) * rules.row_unit;
  s.slice = ((rows - 1) * h.step + reach_of(h)) * s.shape.pitch();
  s.size = depth * s.slice;
  return s;
}

// Where tap (td, th, tw) of output (0, 0) of a strip lies in its packed source.
inline std::int64_t packed_tap(const Dense& d, const Strips& s, std::int64_t td, std::int64_t th,
                               std::int64_t tw) {
  return td * s.slice + th * d.axis[1].offset_step * s.shape.pitch() +
         s.shape.at(d.axis[2].offset - s.first + tw * d.axis[2].offset_step);
}

// The outputs of one strip, and the part of its packed source that is inside the image.
struct Strip {
  std::int64_t od, y, rows, x, columns;
  std::int64_t first_row, source_rows, source_y;        // packed rows before, inside; the first one's number
  std::int64_t first_column, source_columns, source_x;  // the same
};

inline Strip strip_at(const Strips& s, const Dense& d, std::int64_t od, std::int64_t i) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  Strip p{};
  p.od = od;
  p.y = i / s.column_strips * s.rows;
  p.x = i % s.column_strips * s.columns;
  p.rows = imin(s.rows, h.out - p.y);
  p.columns = imin(s.columns, s.width - p.x);
  const std::int64_t y = p.y * h.step + h.offset, x = p.x * w.step + s.first;
  p.first_row = imax(0, -y);
  p.source_rows = imax(0, imin((p.rows - 1) * h.step + reach_of(h), h.source - y) - p.first_row);
  p.source_y = y + p.first_row;
  p.first_column = imax(0, -x);
  p.source_columns = imax(0, imin((p.columns - 1) * w.step + s.reach, w.source - x) - p.first_column);
  p.source_x = x + p.first_column;
  return p;
}

// Memory for packed strips of one problem. Zeros around what is inside the image are kept from strip to
// strip.
template <class C>
struct PackedStrips {
  C* data;
  std::int64_t size;  // in all
  Strip last{0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0};

  void forget() { last.source_columns = -1; }

  // Makes what surrounds the strip zero in all of it.
  void prepare(const Strips& s, const Strip& strip) {
    const bool same_columns =
        strip.first_column == last.first_column && strip.source_columns == last.source_columns;
    if (!same_columns) {
      clear(data, size);
    } else if (strip.first_row != last.first_row || strip.source_rows != last.source_rows) {
      const std::int64_t pitch = s.shape.pitch(), end = strip.first_row + strip.source_rows;
      for (std::int64_t at = 0; at < size; at += s.slice) {
        clear(data + at, imin(s.slice, strip.first_row * pitch));
        clear(data + at + imin(s.slice, end * pitch), imax(0, s.slice - end * pitch));
      }
    }
    last = strip;
  }
};

// Packs the source of a strip of `plane`, of which vectors may read up to `end`.
template <class S, class C>
void pack_strip(const Dense& d, const Strips& s, const Strip& strip, const S* plane, const S* end,
                C* packed) {
  const Axis &a = d.axis[0], &h = d.axis[1], &w = d.axis[2];
  Rows<S> rows{
      nullptr,           end, strip.source_rows, h.source_stride, strip.source_columns, w.source_stride,
      strip.first_column};
  if (rows.rows == 0 || rows.n == 0) return;
  plane += strip.source_y * h.source_stride + strip.source_x * w.source_stride;
  const Inside depth = taps_inside(a, strip.od);
  for (std::int64_t td = depth.begin; td < depth.end; ++td) {
    rows.from = plane + (strip.od * a.step + a.offset + td * a.offset_step) * a.source_stride;
    pack_rows(rows, packed + td * s.slice + strip.first_row * s.shape.pitch(), s.shape);
  }
}

}  // namespace
}  // namespace convnorm::conv
