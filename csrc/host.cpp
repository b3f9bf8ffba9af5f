// SPDX-License-Identifier: Apache-2.0
// prune_engine._host: plans, orders and keep decisions over NumPy arrays, without torch.
//
// The loops are those of the operators (cpu/plan.h, compact.h, order.h). host.py checks and
// converts what users pass; the checks here are the last line of defence, for nothing may be read
// or written outside an array. The GIL is released while a loop runs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bijection.h"
#include "cpu/compact.h"
#include "cpu/order.h"
#include "cpu/plan.h"
#include "cpu/survey.h"
#include "threads.h"

namespace prune_engine {
namespace {

namespace py = pybind11;

// C-contiguous and of this very type: an array that would need a copy is refused.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

constexpr int64_t kMaxIndices = int64_t{1} << 62;
constexpr uint32_t kInfinityBits = 0x7f800000u;

void require(bool condition, const char* message) {
  if (!condition) throw py::value_error(message);
}

void check_numbers(int64_t seed, int64_t epoch) {
  require(seed >= 0, "seed must be in 0..2^63-1");
  require(epoch >= 0 && epoch < INT32_MAX, "epoch must be in 0..2^31-2");
}

template <typename T>
int64_t check_vector(const Array<T>& array, const char* message) {
  require(array.ndim() == 1, message);
  return array.shape(0);
}

Threads threads_of(int64_t count) {
  require(count >= 1, "num_threads must be at least 1");
  return Threads(count);
}

struct Survey {
  int64_t score_sum[kSumWords];
  int64_t infinite;
};

// Also leaves the keys of the block in scratch.
PE_CLONES int64_t count_infinite(const float* scores, int32_t size, SurveyScratch* scratch) {
  uint32_t infinite = 0;
  for (int32_t i = 0; i < size; ++i) {
    infinite += (float_bits(scores[i]) & 0x7fffffffu) == kInfinityBits ? 1 : 0;
    scratch->key[i] = sample_key(scores[i]);
  }
  return infinite;
}

void survey_range(const float* scores, int64_t begin, int64_t end, Survey* out) {
  SurveyScratch scratch;
  for_each_survey_block(begin, end, [&](int64_t at, int32_t size) {
    out->infinite += count_infinite(scores + at, size, &scratch);
    add_keys(size, &scratch, out->score_sum);
  });
}

// The mean threshold of the scores, nan = never seen; refuses inf.
float threshold_of_scores(const Array<float>& scores,  // [N]
                          int64_t num_threads) {
  const int64_t num_samples = check_vector(scores, "scores must be a vector");
  const Threads threads = threads_of(num_threads);
  const float* values = scores.data();
  Survey whole = {};
  {
    const py::gil_scoped_release release;
    std::mutex guard;
    threads(0, num_samples, 65536, [&](int64_t begin, int64_t end) {
      Survey part = {};
      survey_range(values, begin, end, &part);
      const std::lock_guard<std::mutex> lock(guard);
      for (int k = 0; k < kSumWords; ++k) whole.score_sum[k] += part.score_sum[k];
      whole.infinite += part.infinite;
    });
  }
  if (whole.infinite != 0) {
    const auto is_infinite = [](float score) { return std::isinf(score); };
    const float* first = std::find_if(values, values + num_samples, is_infinite);
    throw py::value_error("scores must be finite, or nan where never seen, got inf at index " +
                          std::to_string(first - values));
  }
  return mean_threshold(whole.score_sum);
}

// InfoBatch's rule: class 2 below the threshold, class 1 elsewhere, nan kept with class 1.
std::pair<Array<uint8_t>, Array<int32_t>> plan_scores(const Array<float>& scores,  // [N]
                                                      float threshold, int64_t cut,
                                                      int64_t keep_num,
                                                      int64_t keep_den,  // 0: independent draws
                                                      int64_t seed, int64_t epoch,
                                                      int64_t num_threads) {
  const int64_t num_samples = check_vector(scores, "scores must be a vector");
  require(num_samples <= INT32_MAX, "scores must have at most 2^31-1 elements");
  require(std::isfinite(threshold), "threshold must be finite");
  require(cut >= 0 && cut <= 65535, "cut must be in 0..65535");
  require(keep_den >= 0 && keep_den <= INT32_MAX, "keep_den must be in 0..2^31-1");
  require(keep_num >= 0 && (keep_den == 0 || keep_num <= keep_den),
          "keep_num must be in 0..keep_den");
  check_numbers(seed, epoch);
  const Threads threads = threads_of(num_threads);
  const Decision rule = make_decision(&threshold, {cut, 0}, {2, 1}, -1, seed, epoch);
  std::vector<int64_t> offsets(static_cast<size_t>(num_blocks(num_samples, kPlanBlock)) + 1);
  Array<uint8_t> weight_class(num_samples);
  const float* values = scores.data();
  uint8_t* classes = weight_class.mutable_data();
  {
    const py::gil_scoped_release release;
    plan_samples(values, num_samples, rule, -1, {keep_num, keep_den}, keep_den, threads, classes,
                 offsets.data());
  }
  const int64_t num_kept = offsets.back();
  Array<int32_t> kept(num_kept);
  int32_t* list = kept.mutable_data();
  {
    const py::gil_scoped_release release;
    compact_samples(classes, num_samples, offsets.data(), num_kept, threads, list);
  }
  return {weight_class, kept};
}

// Says which value was outside [0, last]; called once a loop has met one that is.
[[noreturn]] void refuse(const char* name, const int64_t* values, int64_t count, int64_t last) {
  const int64_t* bad = std::find_if(values, values + count,
                                    [last](int64_t value) { return value < 0 || value > last; });
  throw py::index_error(name + (" must be in 0.." + std::to_string(last)) + ", got " +
                        (bad == values + count ? "others" : std::to_string(*bad)));
}

// kept[pi(position)] at given positions, or at start + m * step for m < count.
Array<int32_t> order_kept(const Array<int32_t>& kept,                      // [n]
                          const std::optional<Array<int64_t>>& positions,  // [M]
                          int64_t start, int64_t step, int64_t count, int64_t seed, int64_t epoch,
                          int64_t num_threads) {
  const int64_t n = check_vector(kept, "kept must be a vector");
  require(n <= INT32_MAX, "kept must have at most 2^31-1 elements");
  check_numbers(seed, epoch);
  const Threads threads = threads_of(num_threads);
  if (positions.has_value()) {
    count = check_vector(*positions, "positions must be a vector");
  } else {
    // Bounds under which start + m * step cannot overflow; order_samples does the rest.
    require(start >= 0 && start <= INT32_MAX && step >= -INT32_MAX && step <= INT32_MAX &&
                count >= 0 && count <= INT32_MAX,
            "positions must be in 0..2^31-2");
  }
  const Positions wanted = {positions.has_value() ? positions->data() : nullptr, start, step,
                            count};
  Array<int32_t> samples(count);
  if (count == 0) return samples;
  if (n == 0) throw py::index_error("positions must be empty, for nothing is kept");
  const int32_t* list = kept.data();
  int32_t* out = samples.mutable_data();
  bool valid = false;
  {
    const py::gil_scoped_release release;
    valid = order_samples(list, n, wanted, seed, epoch, threads, out);
  }
  if (!valid) refuse("positions", wanted.given, wanted.given != nullptr ? count : 0, n - 1);
  return samples;
}

// Calls give(m, draw) for every index, one Philox call per run of indices of one group.
// False where an index is negative.
template <typename Give>
bool draw_each(const int64_t* indices, int64_t count, int64_t seed, int64_t epoch,
               const Give& give) {
  const auto key = static_cast<uint64_t>(seed);
  const auto counter = static_cast<uint32_t>(epoch);
  uint64_t group = 0;
  Philox4 words = keep_words(group, key, counter);
  for (int64_t m = 0; m < count; ++m) {
    if (indices[m] < 0) return false;
    const auto index = static_cast<uint64_t>(indices[m]);
    if (index / kGroup != group) {
      group = index / kGroup;
      words = keep_words(group, key, counter);
    }
    give(m, draw_of_words(words, index));
  }
  return true;
}

Array<uint16_t> keep_draws(const Array<int64_t>& indices,  // [M]
                           int64_t seed, int64_t epoch) {
  const int64_t count = check_vector(indices, "indices must be a vector");
  check_numbers(seed, epoch);
  Array<uint16_t> draws(count);
  const int64_t* all = indices.data();
  uint16_t* out = draws.mutable_data();
  bool valid = false;
  {
    const py::gil_scoped_release release;
    valid = draw_each(all, count, seed, epoch,
                      [out](int64_t m, uint32_t draw) { out[m] = static_cast<uint16_t>(draw); });
  }
  if (!valid) refuse("indices", all, count, INT64_MAX);
  return draws;
}

Array<bool> keep_samples(const Array<int64_t>& indices,          // [M]
                         const std::optional<Array<bool>>& low,  // [M], or none: all are
                         int64_t cut, int64_t seed, int64_t epoch) {
  const int64_t count = check_vector(indices, "indices must be a vector");
  require(!low.has_value() || check_vector(*low, "low must be a vector") == count,
          "low must have one element per index");
  require(cut >= 0 && cut <= 65535, "cut must be in 0..65535");
  check_numbers(seed, epoch);
  Array<bool> kept(count);
  const int64_t* all = indices.data();
  const bool* is_low = low.has_value() ? low->data() : nullptr;
  const auto limit = static_cast<uint32_t>(cut);
  bool* out = kept.mutable_data();
  bool valid = false;
  {
    const py::gil_scoped_release release;
    valid = draw_each(all, count, seed, epoch, [=](int64_t m, uint32_t draw) {
      out[m] = draw >= limit || (is_low != nullptr && !is_low[m]);
    });
  }
  if (!valid) refuse("indices", all, count, INT64_MAX);
  return kept;
}

Array<int64_t> permute(const Array<int64_t>& positions,  // [M]
                       int64_t n, int64_t seed, int64_t epoch) {
  const int64_t count = check_vector(positions, "positions must be a vector");
  require(n >= 0 && n <= kMaxIndices, "n must be in 0..2^62");
  check_numbers(seed, epoch);
  Array<int64_t> images(count);
  const int64_t* all = positions.data();
  int64_t* out = images.mutable_data();
  bool valid = true;
  {
    const py::gil_scoped_release release;
    const Bijection pi = make_bijection(n, seed, epoch);
    for (int64_t m = 0; m < count && valid; ++m) {
      const auto position = static_cast<uint64_t>(all[m]);
      valid = position < pi.n;
      if (valid) out[m] = static_cast<int64_t>(apply_bijection(pi, position));
    }
  }
  if (!valid) refuse("positions", all, count, n - 1);
  return images;
}

std::array<uint32_t, 4> philox_words(const std::array<uint32_t, 4>& counter,
                                     const std::array<uint32_t, 2>& key) {
  const Philox4 words = philox4x32(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  return {words.word[0], words.word[1], words.word[2], words.word[3]};
}

}  // namespace
}  // namespace prune_engine

// No state of its own: the module needs no GIL, where Python has none.
PYBIND11_MODULE(_host, m, pybind11::mod_gil_not_used()) {
  namespace pe = prune_engine;
  using pybind11::arg;
  m.doc() = "Plans, orders and keep decisions over NumPy arrays; prune_engine.host documents them.";
  m.def("mean_threshold", &pe::threshold_of_scores, arg("scores").noconvert(), arg("num_threads"));
  m.def("plan", &pe::plan_scores, arg("scores").noconvert(), arg("threshold"), arg("cut"),
        arg("keep_num"), arg("keep_den"), arg("seed"), arg("epoch"), arg("num_threads"));
  m.def("order", &pe::order_kept, arg("kept").noconvert(), arg("positions").noconvert(),
        arg("start"), arg("step"), arg("count"), arg("seed"), arg("epoch"), arg("num_threads"));
  m.def("keep_draw", &pe::keep_draws, arg("indices").noconvert(), arg("seed"), arg("epoch"));
  m.def("keep", &pe::keep_samples, arg("indices").noconvert(), arg("low").noconvert(), arg("cut"),
        arg("seed"), arg("epoch"));
  m.def("bijection", &pe::permute, arg("positions").noconvert(), arg("n"), arg("seed"),
        arg("epoch"));
  m.def("philox4x32", &pe::philox_words, arg("counter"), arg("key"));
}
