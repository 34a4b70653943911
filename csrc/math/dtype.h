// The dtypes of logits, named for code that knows nothing of torch.
#pragma once

#include <cstdint>

namespace gkd {

enum class Dtype : std::int32_t { kHalf, kBFloat16, kFloat, kDouble };

}  // namespace gkd
