#if defined(__x86_64__)
#include "test.h"

#include "cpu/target_avx2.h"
#include "cpu/vec.h"
#include "vec_test_body.h"

void check_vec_avx2() { convnorm::check_vec(); }
#endif
