#pragma once

namespace convnorm {
extern int test_threads;         // how many threads run_parallel uses in these tests
extern bool test_ignores_grain;  // one chunk per thread however small, so that small problems have several
}  // namespace convnorm
