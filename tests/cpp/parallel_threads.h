#pragma once

namespace convnorm {
extern int test_threads;  // how many threads run_parallel uses in these tests
}
