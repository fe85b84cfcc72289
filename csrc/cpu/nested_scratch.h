// Scratch memory for a kernel that is called from within another one's work: while one of these lives, its
// thread has slots of their own, so that the kernel outside keeps what it holds. They do not nest further.
#pragma once

namespace convnorm {

class NestedScratch {
 public:
  NestedScratch();
  ~NestedScratch();
  NestedScratch(const NestedScratch&) = delete;
  NestedScratch& operator=(const NestedScratch&) = delete;
};

}  // namespace convnorm
