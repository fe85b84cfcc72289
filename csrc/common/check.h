// Argument checks. The text names the op, the argument, the value and the rule; the C++ class decides what
// Python sees: std::runtime_error -> RuntimeError, std::invalid_argument -> ValueError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace convnorm {

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
