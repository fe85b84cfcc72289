#if defined(__x86_64__)
#include "test.h"

#include "cpu/target_avx512.h"
#include "cpu/vec.h"
#include "vec_test_body.h"

void check_vec_avx512() { convnorm::check_vec(); }
#endif
