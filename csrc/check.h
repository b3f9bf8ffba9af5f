// SPDX-License-Identifier: Apache-2.0
// Argument checks of the operators on any device: the last line of defence behind the checks in
// ops.py. Compiled once (check.cpp), for their messages take far more room than their tests.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/macros/Macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <vector>

#include "exact_sum.h"
#include "fresh.h"
#include "levels.h"
#include "score_state.h"
#include "select.h"
#include "semantics.h"
#include "softmax.h"

namespace prune_engine {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] void refuse_dtype(const char* name);

void check_score_sum(const Tensor& score_sum);

void check_epoch(int64_t epoch);

void check_plan(const Tensor& records, const Tensor& thresholds, const std::vector<int64_t>& cuts,
                const std::vector<int64_t>& classes, const std::vector<int64_t>& keep_num,
                int64_t keep_den, int64_t unseen_band, int64_t seed, int64_t epoch,
                const Tensor& weight_class, int64_t first);

// All but the values, which only a cpu can read.
void check_indices(const Tensor& indices, int64_t size);

void check_losses(const Tensor& losses, const Tensor& indices, const Tensor& scored);

void check_mean(const Tensor& losses, const Tensor& indices, const Tensor& scored);

// state: records, score_sum, counters, step, weight_class, weight_table and epoch. Checks all but
// the value of epoch, which only a cpu can read.
ScoreState make_state(const std::vector<Tensor>& state);

// What is computed in: float32, float64 for float64 logits.
ScalarType real_dtype(const Tensor& logits);

// All but the values of targets, which only a cpu can read.
Labels check_logits(const Tensor& logits, const Tensor& targets,
                    const std::optional<Tensor>& class_weight, double label_smoothing,
                    int64_t ignore_index, int64_t kind);

void check_gradient(const Tensor& grad, const Tensor& logits, const Tensor& batch_weights,
                    const Tensor& stats);

// All but the values of block_offsets, which only a cpu can read.
void check_compact(const Tensor& weight_class, const Tensor& block_offsets);

// Returns how many positions there are.
int64_t check_order(const Tensor& kept, const std::optional<Tensor>& positions, int64_t count,
                    int64_t seed, int64_t epoch, int64_t start, int64_t step);

void check_shuffle(const Tensor& places, int64_t n, int64_t seed, int64_t epoch);

void check_draw(const Tensor& indices, int64_t seed, int64_t epoch, int64_t stream);

void check_plan_top(const Tensor& records, int64_t k, int64_t cut, int64_t seed, int64_t epoch,
                    const Tensor& weight_class);

void check_audit(const Tensor& records, const Tensor& weight_class, int64_t epoch);

void check_records(const Tensor& records);

// All but the values of counts, which only a cpu can read.
void check_solve_levels(const Tensor& counts, int64_t target, int64_t least);

// All but the values of top and cut, which only a cpu can read.
void check_plan_levels(const Tensor& records, const Tensor& top, const Tensor& unseen,
                       const Tensor& cut, int64_t seed, int64_t epoch, const Tensor& weight_class,
                       int64_t first);

std::vector<Rank> check_select(const Tensor& values, const std::vector<int64_t>& offsets,
                               const std::vector<int64_t>& shares, int64_t den);

void check_top(const Tensor& values, int64_t k);

// All but the values of epoch and step, which only a cpu can read; any will do.
void check_pick(const Tensor& values, int64_t k, int64_t rule, int64_t floor, int64_t seed,
                const Tensor& epoch, const Tensor& step, int64_t rank, int64_t site);

void check_activation(const Tensor& tensor, const char* name);

void check_moments(const std::vector<Tensor>& tensors, int64_t sample);

// All but the value of slot, which only a cpu can read.
void check_activation_std(const std::vector<Tensor>& tensors, const Tensor& out,
                          const std::optional<Tensor>& slot, int64_t sample);

}  // namespace prune_engine
