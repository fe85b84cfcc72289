// Everything a kernel body may use from outside, included before any target pragma.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/dtype.h"
#include "common/parallel.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
