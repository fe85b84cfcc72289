#include "test.h"

#include "cpu/target_generic.h"
#include "cpu/vec.h"
#include "vec_test_body.h"

void check_vec_generic() { convnorm::check_vec(); }
