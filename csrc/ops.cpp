// SPDX-License-Identifier: Apache-2.0
// Every operator's schema, on one page; (a!) marks what an operator changes. The kernels are in
// the files of the same name under cpu/. This library contains no Python and uses only PyTorch's
// stable ABI, so one file serves every torch >= 2.10 and every interpreter.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(prune_engine, m) {
  // Records the batch's scores and weighs its losses: (rescaled [B], batch_weights [B]). state is
  // records, score_sum, counters and step, which change, and weight_class, weight_table and epoch,
  // which do not: one list, for every argument of its own costs each call time. Epoch and step are
  // tensors so that a captured graph stays right in the next epoch and step; advance: step grows
  // by 1.
  m.def(
      "observe(Tensor losses, Tensor indices, Tensor? score, Tensor(a!)[] state, bool advance) "
      "-> (Tensor, Tensor)");
  // As observe; returns the gradient of the weighed mean of the losses, which are float32:
  // float32(1 / B) * weight, [B].
  m.def(
      "observe_mean(Tensor losses, Tensor indices, Tensor? score, Tensor(a!)[] state, "
      "bool advance) -> Tensor");
  // score_sum [10] -> the mean threshold, float32 [1].
  m.def("mean_threshold(Tensor score_sum) -> Tensor");
  // records [N] -> weight_class [N] in place, block_offsets [ceil(N / 4096) + 1]. first: the number
  // in the data set of the first record, where these are a shard's.
  m.def(
      "plan(Tensor records, Tensor thresholds, int[] cuts, int[] classes, int[] keep_num, "
      "int keep_den, int unseen_band, int seed, int epoch, Tensor(a!) weight_class, "
      "int first=0) -> Tensor");
  // records [N] -> how many samples each cell of scores has, int64 [4096]; the last: never seen.
  m.def("cells(Tensor records) -> Tensor");
  // counts of cells, and how many samples to keep -> the levels that keep as many on average: top
  // [1] and cut [256], int32; weight_table, float32 [256]; and, int64 [2], theta and 65536 times
  // the number kept on average.
  m.def("solve_levels(Tensor counts, int target, int least) -> (Tensor, Tensor, Tensor, Tensor)");
  // As plan, by levels. unseen: int32 [1], the cell of what was never seen; none: it stays.
  m.def(
      "plan_levels(Tensor records, Tensor top, Tensor cut, int seed, int epoch, "
      "Tensor(a!) weight_class, int first=0, Tensor? unseen=None) -> Tensor");
  // weight_class [N] -> the kept samples, ascending, int32 [num_kept].
  m.def("compact(Tensor weight_class, Tensor block_offsets, int num_kept) -> Tensor");
  // Positions (a tensor, or start + m * step for m < count) -> samples, int32.
  m.def(
      "order(Tensor kept, Tensor? positions, int start, int step, int count, int seed, "
      "int epoch) -> Tensor");
  // Positions of an epoch of n samples -> their ranks in its list of kept ones, or the inverse;
  // int64.
  m.def("shuffle(Tensor places, int n, bool inverse, int seed, int epoch) -> Tensor");
  // The 32-bit draw of each index in a stream of its own; int64.
  m.def("draw(Tensor indices, int seed, int epoch, int stream) -> Tensor");
  // records [N] -> weight_class [N] in place: 1 for the k largest of those whose keep draw reaches
  // cut, the never seen first, ties by draw; block_offsets as plan's.
  m.def(
      "plan_top(Tensor records, int k, int cut, int seed, int epoch, Tensor(a!) weight_class) "
      "-> Tensor");
  // records [N], weight_class [N] -> [score_sum [10], planned seen, missing, extra].
  m.def("audit(Tensor records, Tensor weight_class, int epoch) -> Tensor");
  // logits [B, C], targets [B] -> loss and score of each row, recorded and weighed as by observe:
  // (rescaled [B], batch_weights [B], score [B], stats [B, 2] for the gradient).
  m.def(
      "cross_entropy_observe(Tensor logits, Tensor targets, Tensor indices, Tensor? class_weight, "
      "float label_smoothing, int ignore_index, int kind, Tensor(a!)[] state, bool advance) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  // The gradient of rescaled, grad [B], -> that of logits [B, C].
  m.def(
      "cross_entropy_grad(Tensor grad, Tensor logits, Tensor targets, Tensor? class_weight, "
      "float label_smoothing, int ignore_index, Tensor batch_weights, Tensor stats) -> Tensor");
  // Scores or records [N] -> the scores at ranks ceil((seen - 1) * share / den) + offset, float32.
  m.def("select(Tensor values, int[] offsets, int[] shares, int den) -> Tensor");
  // Scores or records [N] -> 1 for the k largest, ties to the smaller index, else 0: uint8 [N].
  m.def("top(Tensor values, int k) -> Tensor");
  // Scores [B] -> min(k, B) of them by a rule (0 the largest, 1 all alike, 2 in proportion):
  // (indices, ascending; weights, the inverse probabilities; how many were eligible [1]). epoch and
  // step are tensors so that a captured graph draws anew in each replay.
  m.def(
      "pick(Tensor values, int k, int rule, int floor, int seed, Tensor epoch, Tensor step, "
      "int rank, int site) -> (Tensor, Tensor, Tensor)");
  // L tensors -> float64 [L, 3]: count, mean, sum of squared deviations.
  m.def("moments(Tensor[] tensors, int sample) -> Tensor");
  // L tensors -> the mean of their standard deviations, in out[slot] (no slot: out[0]).
  m.def(
      "activation_std(Tensor[] tensors, Tensor(a!) out, Tensor? slot, bool unbiased, int sample) "
      "-> ()");
  // An activation and the moments, float64 [3], of its result; the second form writes over x.
  m.def("relu_moments(Tensor x) -> (Tensor, Tensor)");
  m.def("relu_moments_(Tensor(a!) x) -> Tensor");
  m.def("gelu_moments(Tensor x, bool tanh) -> (Tensor, Tensor)");
}
