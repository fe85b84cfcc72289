// Runs vec_test_body.h for every instruction set that this processor has.
#include "cpu/isa.h"
#include "test.h"

void check_vec_generic();
void check_vec_avx2();
void check_vec_avx512();

int main() {
  check_vec_generic();
#if defined(__x86_64__)
  if (convnorm::supported_isa() >= convnorm::Isa::avx2) check_vec_avx2();
  if (convnorm::supported_isa() >= convnorm::Isa::avx512) check_vec_avx512();
#endif
  return finish();
}
