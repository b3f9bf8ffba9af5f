// SPDX-License-Identifier: Apache-2.0
// cross_entropy_grad on the CPU: threads share the rows; a block is read, and written, once.
#include <algorithm>
#include <optional>

#include "dtypes.h"
#include "logits.h"
#include "parallel.h"

namespace prune_engine {
namespace {

template <typename Logit>
void write_row(const Logit* logits, const float* weights, int64_t count, int64_t target,
               const RowGradient<float>& row, Logit* out) {
  float wide[kBlock], made[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = std::min(kBlock, count - begin);
    gradient_block(as_floats(logits + begin, size, wide), weights ? weights + begin : nullptr, size,
                   row.largest, row.scale, row.shift, made);
    if (target >= begin && target < begin + size) made[target - begin] -= row.own;
    if constexpr (std::is_same_v<Logit, float>) {
      std::copy(made, made + size, out + begin);
    } else {
      narrow_block(made, size, out + begin);
    }
  }
}

void write_row(const double* logits, const float* weights, int64_t count, int64_t target,
               const RowGradient<double>& row, double* out) {
  for (int64_t c = 0; c < count; ++c) {
    const double weight = weights ? static_cast<double>(weights[c]) : 1.0;
    out[c] = std::exp(logits[c] - row.largest) * row.scale - row.shift * weight;
  }
  out[target] -= row.own;
}

}  // namespace

Tensor cross_entropy_grad_cpu(Tensor grad,     // [B] float32, float64 for float64 logits
                              Tensor logits,   // [B, C] float16 | bfloat16 | float32 | float64
                              Tensor targets,  // [B] int64
                              std::optional<Tensor> class_weight,  // [C] float32, or none
                              double label_smoothing, int64_t ignore_index,
                              Tensor batch_weights,  // [B] float32
                              Tensor stats) {        // [B, 2] in the dtype of grad
  const Labels labels =
      check_logits(logits, targets, class_weight, label_smoothing, ignore_index, 0);
  check_gradient(grad, logits, batch_weights, stats);
  const int64_t size = targets.numel(), count = labels.num_classes;
  Tensor made = torch::stable::new_empty(logits, {size, count});
  const int64_t* target = targets.const_data_ptr<int64_t>();
  const float* weights = batch_weights.const_data_ptr<float>();
  with_float_type(logits.scalar_type(), "logits", [&](auto* type) {
    using Logit = std::remove_pointer_t<decltype(type)>;
    using Real = typename Accumulator<Logit>::Type;
    const auto* from = static_cast<const Logit*>(logits.const_data_ptr());
    const auto* incoming = grad.const_data_ptr<Real>();
    const auto* saved = stats.const_data_ptr<Real>();
    auto* to = static_cast<Logit*>(made.mutable_data_ptr());
    const Smoothing<Real> smoothing = {static_cast<Real>(label_smoothing), count};
    TorchThreads()(0, size, row_grain(count), [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const int64_t y = target[b];
        Logit* out = to + b * count;
        if (y == ignore_index) {
          std::fill(out, out + count, static_cast<Logit>(0.0f));
          continue;
        }
        STD_TORCH_CHECK(y >= 0 && y < count, "targets must not change before the backward pass");
        const Real upstream = incoming[b] * static_cast<Real>(weights[b]);
        const Real own = labels.class_weight ? static_cast<Real>(labels.class_weight[y]) : 1;
        write_row(from + b * count, labels.class_weight, count, y,
                  row_gradient(saved + 2 * b, upstream, own, smoothing), out);
      }
    });
  });
  return made;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("cross_entropy_grad", TORCH_BOX(&prune_engine::cross_entropy_grad_cpu));
}
