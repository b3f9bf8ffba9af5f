// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <algorithm>
#include <utility>

#include "pick.h"

namespace prune_engine {
namespace {

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Float:
      return "float32";
    default:
      return "float64";
  }
}

// Elements fill their storage without gap or overlap: contiguous after some permutation.
bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (size_t k = 0; k < sizes.size(); ++k) {
    if (sizes[k] != 1) dims.emplace_back(strides[k], sizes[k]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

void check_dim(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 1, name, " must be a vector, got ", tensor.dim(), " dimensions");
}

void check_contiguous(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

void check_vector(const Tensor& tensor, const char* name, ScalarType dtype) {
  check_dim(tensor, name);
  STD_TORCH_CHECK(has_dtype(tensor, dtype), name, " must be ", dtype_name(dtype));
  check_contiguous(tensor, name);
}

void check_size(const Tensor& tensor, const char* name, int64_t size) {
  STD_TORCH_CHECK(tensor.numel() == size, name, " must have ", size, " elements, got ",
                  tensor.numel());
}

void check_vector(const Tensor& tensor, const char* name, ScalarType dtype, int64_t size) {
  check_vector(tensor, name, dtype);
  check_size(tensor, name, size);
}

void check_samples(const Tensor& records, const Tensor& weight_class) {
  check_vector(records, "records", ScalarType::Long);
  check_vector(weight_class, "weight_class", ScalarType::Byte, records.numel());
}

void check_seed(int64_t seed) {
  STD_TORCH_CHECK(seed >= 0, "seed must be in 0..2^63-1, got ", seed);
}

void check_first(int64_t first) {
  STD_TORCH_CHECK(first >= 0 && first <= int64_t{1} << 62 && first % kPlanBlock == 0,
                  "first must be a multiple of ", kPlanBlock, " in 0..2^62, got ", first);
}

// What plan takes, apart from seed and epoch.
void check_rule(const Tensor& thresholds, const std::vector<int64_t>& cuts,
                const std::vector<int64_t>& classes, const std::vector<int64_t>& keep_num,
                int64_t keep_den, int64_t unseen_band) {
  check_vector(thresholds, "thresholds", ScalarType::Float);
  const auto bands = static_cast<size_t>(thresholds.numel() + 1);
  STD_TORCH_CHECK(bands <= kMaxBands, "thresholds must have at most ", kMaxBands - 1,
                  " elements, got ", thresholds.numel());
  STD_TORCH_CHECK(cuts.size() == bands && classes.size() == bands && keep_num.size() == bands,
                  "cuts, classes and keep_num must have ", bands, " elements");
  STD_TORCH_CHECK(keep_den >= 0 && keep_den <= INT32_MAX, "keep_den must be in 0..2147483647, got ",
                  keep_den);
  STD_TORCH_CHECK(unseen_band >= -1 && unseen_band < static_cast<int64_t>(bands),
                  "unseen_band must be in -1..", bands - 1, ", got ", unseen_band);
  for (size_t band = 0; band < bands; ++band) {
    STD_TORCH_CHECK(cuts[band] >= 0 && cuts[band] < kCutAll, "cuts must be in 0..65535, got ",
                    cuts[band]);
    STD_TORCH_CHECK(classes[band] >= 1 && classes[band] < kNumClasses,
                    "classes must be in 1..255, got ", classes[band]);
    STD_TORCH_CHECK(keep_num[band] >= 0 && (keep_den == 0 || keep_num[band] <= keep_den),
                    "keep_num must be in 0..keep_den, got ", keep_num[band]);
  }
}

// Scores or records; N fits the 31 bits of a sample's number.
void check_values(const Tensor& values) {
  const ScalarType dtype = values.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Long,
                  "values must be float32 scores or int64 records");
  check_vector(values, "values", dtype);
  STD_TORCH_CHECK(values.numel() <= INT32_MAX, "values must have at most 2147483647 elements, got ",
                  values.numel());
}

}  // namespace

void refuse_dtype(const char* name) {
  STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64");
}

void check_score_sum(const Tensor& score_sum) {
  check_vector(score_sum, "score_sum", ScalarType::Long, kSumWords);
}

void check_epoch(int64_t epoch) {
  STD_TORCH_CHECK(epoch >= 0 && epoch < INT32_MAX, "epoch must be in 0..2147483646, got ", epoch);
}

void check_plan(const Tensor& records, const Tensor& thresholds, const std::vector<int64_t>& cuts,
                const std::vector<int64_t>& classes, const std::vector<int64_t>& keep_num,
                int64_t keep_den, int64_t unseen_band, int64_t seed, int64_t epoch,
                const Tensor& weight_class, int64_t first) {
  check_samples(records, weight_class);
  check_rule(thresholds, cuts, classes, keep_num, keep_den, unseen_band);
  check_seed(seed);
  check_epoch(epoch);
  check_first(first);
  STD_TORCH_CHECK(first == 0 || keep_den == 0,
                  "first must be 0 with fixed counts, which are of the whole data set, got ",
                  first);
}

void check_indices(const Tensor& indices, int64_t size) {
  STD_TORCH_CHECK(has_dtype(indices, ScalarType::Long) || has_dtype(indices, ScalarType::Int),
                  "indices must be int64 or int32");
  check_dim(indices, "indices");
  check_contiguous(indices, "indices");
  check_size(indices, "indices", size);
}

void check_losses(const Tensor& losses, const Tensor& indices, const Tensor& scored) {
  const int64_t size = losses.numel();
  check_dim(losses, "losses");
  check_contiguous(losses, "losses");
  check_indices(indices, size);
  check_dim(scored, "score");
  check_contiguous(scored, "score");
  check_size(scored, "score", size);
}

void check_mean(const Tensor& losses, const Tensor& indices, const Tensor& scored) {
  check_losses(losses, indices, scored);
  STD_TORCH_CHECK(has_dtype(losses, ScalarType::Float), "losses must be float32");
}

ScoreState make_state(const std::vector<Tensor>& state) {
  STD_TORCH_CHECK(state.size() == 7, "state must be 7 tensors, got ", state.size());
  const Tensor &records = state[0], &score_sum = state[1], &counters = state[2], &step = state[3];
  const Tensor &weight_class = state[4], &weight_table = state[5], &epoch = state[6];
  check_samples(records, weight_class);
  check_score_sum(score_sum);
  check_vector(counters, "counters", ScalarType::Long, kNumCounters);
  check_vector(step, "step", ScalarType::Long, 1);
  check_vector(weight_table, "weight_table", ScalarType::Float, kNumClasses);
  check_vector(epoch, "epoch", ScalarType::Long, 1);
  return {static_cast<int64_t*>(records.mutable_data_ptr()),
          records.numel(),
          static_cast<int64_t*>(score_sum.mutable_data_ptr()),
          static_cast<int64_t*>(counters.mutable_data_ptr()),
          static_cast<int64_t*>(step.mutable_data_ptr()),
          static_cast<const uint8_t*>(weight_class.const_data_ptr()),
          static_cast<const float*>(weight_table.const_data_ptr()),
          static_cast<const int64_t*>(epoch.const_data_ptr())};
}

ScalarType real_dtype(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Labels check_logits(const Tensor& logits, const Tensor& targets,
                    const std::optional<Tensor>& class_weight, double label_smoothing,
                    int64_t ignore_index, int64_t kind) {
  STD_TORCH_CHECK(logits.dim() == 2, "logits must be [B, C], got ", logits.dim(), " dimensions");
  STD_TORCH_CHECK(logits.is_contiguous(), "logits must be contiguous");
  check_vector(targets, "targets", ScalarType::Long, logits.size(0));
  if (class_weight.has_value()) {
    check_vector(*class_weight, "class_weight", ScalarType::Float, logits.size(1));
  }
  STD_TORCH_CHECK(label_smoothing >= 0 && label_smoothing <= 1,
                  "label_smoothing must be in 0..1, got ", label_smoothing);
  STD_TORCH_CHECK(kind >= 0 && kind < kNumScores, "score must be in 0..", kNumScores - 1, ", got ",
                  kind);
  return {logits.size(1),
          class_weight.has_value() ? class_weight->const_data_ptr<float>() : nullptr,
          label_smoothing, ignore_index, kind};
}

void check_gradient(const Tensor& grad, const Tensor& logits, const Tensor& batch_weights,
                    const Tensor& stats) {
  check_vector(grad, "grad", real_dtype(logits), logits.size(0));
  check_vector(batch_weights, "batch_weights", ScalarType::Float, logits.size(0));
  STD_TORCH_CHECK(stats.scalar_type() == real_dtype(logits) && stats.is_contiguous(),
                  "stats must be those of cross_entropy_observe");
  check_size(stats, "stats", 2 * logits.size(0));
}

void check_compact(const Tensor& weight_class, const Tensor& block_offsets) {
  check_vector(weight_class, "weight_class", ScalarType::Byte);
  check_vector(block_offsets, "block_offsets", ScalarType::Long,
               num_blocks(weight_class.numel(), kPlanBlock) + 1);
}

int64_t check_order(const Tensor& kept, const std::optional<Tensor>& positions, int64_t count,
                    int64_t seed, int64_t epoch, int64_t start, int64_t step) {
  check_vector(kept, "kept", ScalarType::Int);
  check_seed(seed);
  check_epoch(epoch);
  if (positions.has_value()) {
    check_vector(*positions, "positions", ScalarType::Long);
    count = positions->numel();
  }
  STD_TORCH_CHECK(count >= 0, "count must be at least 0, got ", count);
  STD_TORCH_CHECK(count == 0 || kept.numel() > 0,
                  "IndexError: positions must be empty, for nothing is kept");
  int64_t last = 0;
  const bool wraps =
      __builtin_mul_overflow(step, count - 1, &last) || __builtin_add_overflow(start, last, &last);
  STD_TORCH_CHECK(positions.has_value() || count == 0 || !wraps,
                  "IndexError: positions must be in 0..", kept.numel() - 1);
  return count;
}

void check_shuffle(const Tensor& places, int64_t n, int64_t seed, int64_t epoch) {
  check_vector(places, "places", ScalarType::Long);
  STD_TORCH_CHECK(n >= 0 && n <= int64_t{1} << 62, "n must be in 0..2^62, got ", n);
  check_seed(seed);
  check_epoch(epoch);
  STD_TORCH_CHECK(places.numel() == 0 || n > 0,
                  "IndexError: places must be empty, for nothing is kept");
}

void check_draw(const Tensor& indices, int64_t seed, int64_t epoch, int64_t stream) {
  check_vector(indices, "indices", ScalarType::Long);
  check_seed(seed);
  check_epoch(epoch);
  STD_TORCH_CHECK(stream >= 0 && stream <= kMaxStream, "stream must be in 0..", kMaxStream,
                  ", got ", stream);
}

void check_plan_top(const Tensor& records, int64_t k, int64_t cut, int64_t seed, int64_t epoch,
                    const Tensor& weight_class) {
  check_samples(records, weight_class);
  STD_TORCH_CHECK(k >= 0 && k <= INT32_MAX, "k must be in 0..2147483647, got ", k);
  STD_TORCH_CHECK(cut >= 0 && cut < kDraws, "cut must be in 0..65535, got ", cut);
  check_seed(seed);
  check_epoch(epoch);
}

void check_audit(const Tensor& records, const Tensor& weight_class, int64_t epoch) {
  check_samples(records, weight_class);
  check_epoch(epoch);
}

void check_records(const Tensor& records) { check_vector(records, "records", ScalarType::Long); }

void check_solve_levels(const Tensor& counts, int64_t target, int64_t least) {
  check_vector(counts, "counts", ScalarType::Long, kCells);
  STD_TORCH_CHECK(target >= 0 && target <= kMostCounted, "target must be in 0..2^46, got ", target);
  STD_TORCH_CHECK(least >= 1 && least <= kDraws, "least must be in 1..65536, got ", least);
}

void check_plan_levels(const Tensor& records, const Tensor& top, const Tensor& unseen,
                       const Tensor& cut, int64_t seed, int64_t epoch, const Tensor& weight_class,
                       int64_t first) {
  check_samples(records, weight_class);
  check_vector(top, "top", ScalarType::Int, 1);
  check_vector(unseen, "unseen", ScalarType::Int, 1);
  check_vector(cut, "cut", ScalarType::Int, kNumClasses);
  check_seed(seed);
  check_epoch(epoch);
  check_first(first);
}

std::vector<Rank> check_select(const Tensor& values, const std::vector<int64_t>& offsets,
                               const std::vector<int64_t>& shares, int64_t den) {
  check_values(values);
  STD_TORCH_CHECK(offsets.size() == shares.size() && offsets.size() <= kMaxRanks,
                  "offsets and shares must have the same number of elements, at most ", kMaxRanks,
                  ", got ", offsets.size(), " and ", shares.size());
  STD_TORCH_CHECK(den >= 1 && den <= INT32_MAX, "den must be in 1..2147483647, got ", den);
  std::vector<Rank> ranks;
  for (size_t r = 0; r < offsets.size(); ++r) {
    STD_TORCH_CHECK(shares[r] >= 0 && shares[r] <= den, "shares must be in 0..den, got ",
                    shares[r]);
    STD_TORCH_CHECK(offsets[r] >= -INT64_C(0x7fffffff) && offsets[r] <= INT32_MAX,
                    "offsets must be in -2147483647..2147483647, got ", offsets[r]);
    ranks.push_back({offsets[r], shares[r]});
  }
  return ranks;
}

void check_top(const Tensor& values, int64_t k) {
  check_values(values);
  STD_TORCH_CHECK(k >= 0 && k <= INT32_MAX, "k must be in 0..2147483647, got ", k);
}

void check_pick(const Tensor& values, int64_t k, int64_t rule, int64_t floor, int64_t seed,
                const Tensor& epoch, const Tensor& step, int64_t rank, int64_t site) {
  check_vector(values, "values", ScalarType::Float);
  check_values(values);
  STD_TORCH_CHECK(k >= 0 && k <= INT32_MAX, "k must be in 0..2147483647, got ", k);
  STD_TORCH_CHECK(rule >= kPickTop && rule <= kPickProportional, "rule must be in 0..2, got ",
                  rule);
  STD_TORCH_CHECK(floor >= 0 && floor <= 65536, "floor must be in 0..65536, got ", floor);
  check_seed(seed);
  check_vector(epoch, "epoch", ScalarType::Long, 1);
  check_vector(step, "step", ScalarType::Long, 1);
  STD_TORCH_CHECK(rank >= 0 && rank <= INT32_MAX, "rank must be in 0..2147483647, got ", rank);
  STD_TORCH_CHECK(site >= 0 && site <= kMaxSite, "site must be in 0..", kMaxSite, ", got ", site);
}

void check_activation(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Double && dtype != ScalarType::Half &&
      dtype != ScalarType::BFloat16) {
    refuse_dtype(name);
  }
  STD_TORCH_CHECK(is_dense(tensor), name, " must be dense: its elements without gap or overlap");
}

void check_moments(const std::vector<Tensor>& tensors, int64_t sample) {
  STD_TORCH_CHECK(!tensors.empty(), "tensors must be at least one tensor, got none");
  STD_TORCH_CHECK(sample >= 1 && sample <= INT32_MAX, "sample must be in 1..2147483647, got ",
                  sample);
  for (const Tensor& tensor : tensors) check_activation(tensor, "tensors");
}

void check_activation_std(const std::vector<Tensor>& tensors, const Tensor& out,
                          const std::optional<Tensor>& slot, int64_t sample) {
  check_moments(tensors, sample);
  check_vector(out, "out", ScalarType::Double);
  if (!slot.has_value()) return;
  check_vector(*slot, "slot", ScalarType::Long, 1);
}

}  // namespace prune_engine
