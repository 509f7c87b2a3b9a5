// Groups of the negatives' operators' arguments that every device has, as they arrive: they borrow
// from the operator's own arguments.
#pragma once

#include <optional>

#include "csrc/ops/proposal.h"

namespace ssc::ops {

// The samples: ids [S] for all rows or [B, S] with their log counts, or a key from which [B, S] are
// drawn as they are needed.
struct Source {
  const std::optional<Tensor>& ids;
  const std::optional<Tensor>& log_count;
  const std::optional<Tensor>& key;
  ProposalArguments proposal;
  int64_t num_drawable, num_samples, method;
  const std::optional<Tensor>& tries;
  const std::optional<Tensor>& exclude;
  bool corrected;  // with a key: whether log n is subtracted

  bool of_rows() const {
    STD_TORCH_CHECK(ids.has_value() != key.has_value(), "either ids or a key must be given");
    STD_TORCH_CHECK(!ids.has_value() || ids->dim() == 1 || ids->dim() == 2,
                    "ids must be [S] or [B, S]");
    return key.has_value() || ids->dim() == 2;
  }
};

// From logits to a row's sum.
struct Sum {
  double softcap;
  bool remove_hits, sigmoid;
};

}  // namespace ssc::ops
