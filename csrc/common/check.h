// Argument checks. The text names the op, the argument, the value and the rule; the C++ class decides what
// Python sees: std::runtime_error -> RuntimeError, std::invalid_argument -> ValueError.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace convnorm {

// Sizes as Python prints them, "(2, 3, 4)": a string only where an error needs it.
struct Shape {
  const std::vector<std::int64_t>& sizes;
};
inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  const char* separator = "(";
  for (const std::int64_t size : shape.sizes) {
    out << separator << size;
    separator = ", ";
  }
  return out << (shape.sizes.size() == 1 ? ",)" : ")");
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) throw std::runtime_error(text(parts...));
}

template <class... Parts>
void check_value(bool ok, const Parts&... parts) {
  if (!ok) throw std::invalid_argument(text(parts...));
}

}  // namespace convnorm
