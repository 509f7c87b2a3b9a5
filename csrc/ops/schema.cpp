// Every operator of torch.ops.sampled_softmax. Kernels are registered in the file of their stage
// in csrc/ops/cpu (sample.cpp, loss.cpp, negatives.cpp, ...), and for CUDA, in a library of their
// own, in csrc/ops/cuda. Arguments come in groups, in this order: operands (input, weight, bias),
// rows (targets), source of the samples, logits, sum, gradient; products is last. Fakes and autograd
// are in the Python module of the stage, which checks the arguments with messages for users.
//
// Shapes: B rows, D features, C classes, S samples, N touched rows.
//   key [2] int64 (seed, offset); ids, target, grad_rows [1, N] int64; log counts float32
//   input [B, D]; weight [C, D]; bias [C]; target [B]; ids, log_expected_count [S];
//   target_log_expected_count, row_scale, loss, lse, target_logit, error [B]; rows [4, B]
#include "csrc/ops/stable.h"

STABLE_TORCH_LIBRARY(sampled_softmax, m) {
  // The instruction set of the CPU kernels, "scalar", "avx2", "avx512", "avx512_bf16" or "amx_bf16";
  // the one that multiplies matrices of each dtype, in lines "dtype name"; and why.
  m.def("cpu_isa() -> (str name, str by_dtype, str reason)");
  // The architectures that the CUDA library was compiled for, such as "8.0 9.0+PTX".
  m.def("cuda_architectures() -> str");
  // Asks for huge pages under a large tensor; changes no value.
  m.def("advise_huge_pages(Tensor tensor) -> ()");

  // Draws: ids [num_samples], the number of draws of the stream that gave them, and log n of the
  // ids and of the targets. method: 0 with replacement, 1 the first distinct draws, 2 a race with
  // the same distribution as 1. tries: the t behind n without replacement (one float64); none: the
  // number of draws seen. The log n are corrections: 0 for a class of probability 0, and for a
  // target that is no class. probability_bits [C]: the bits of the float64 probabilities as int64,
  // so that a module's .half() can't round them.
  //
  // A proposal is (kind, num_classes, table, probability_bits, num_drawable). kind: 0 uniform, 1
  // log-uniform, 2 weighted, which has table and probability_bits; num_drawable: the classes of
  // positive probability.
  //
  // per_row: rows have draws of their own, row r from the key's subsequence r + 1; ids and
  // log_count are [B, S], num_draws [B], target and target_log_count [B, T]. Then exclude [B, E] are classes
  // that a row must not have, ids outside [0, C) are padding, and without keep_ids only
  // target_log_count is wanted: the others are empty.
  m.def(
      "sample(Tensor key, Tensor target, int kind, int num_classes, Tensor? table,"
      " Tensor? probability_bits, int num_drawable, int num_samples, int method, Tensor? tries,"
      " Tensor? exclude=None, bool per_row=False, bool keep_ids=True) -> (Tensor ids,"
      " Tensor num_draws, Tensor log_count, Tensor target_log_count)");
  // log n of any ids: with replacement (no tries; num_samples = 1 makes it log q), or without. -inf
  // for a class of probability 0, and NaN for what is no probability.
  m.def(
      "log_counts(Tensor ids, int kind, int num_classes, Tensor? table, Tensor? probability_bits,"
      " int num_drawable, int num_samples, Tensor? tries) -> Tensor");
  // Float64 probabilities [C] to the table of csrc/core/alias_table.h, int64 [C].
  m.def("build_alias_table(Tensor probabilities) -> Tensor");

  // The sampled loss of each row; error is 1 where a sample beats the target. products, here and
  // below: how float32 matrices may be multiplied, by the numbers of csrc/core/products.h.
  m.def(
      "loss_rows(Tensor input, Tensor weight, Tensor? bias, Tensor target, Tensor ids,"
      " Tensor? log_expected_count, Tensor? target_log_expected_count, float inv_temperature,"
      " bool remove_accidental_hits, SymInt ignore_index, int products=0)"
      " -> (Tensor loss, Tensor lse, Tensor target_logit, Tensor error)");
  // total = sum(row_scale * loss) with its gradients, and rows = (loss, lse, target_logit, error).
  // No row_scale: the mean of the rows that count (0 if none does), or their sum. sparse_grad:
  // grad_weight [N, D] and grad_bias [N] belong to the classes grad_rows; else they are [C, D] and
  // [C], and grad_rows is empty. The classes grad_rows are sorted and distinct on the CPU; on a GPU
  // N = S + B, whatever the ids are, and a class may be there several times, with zeros but once.
  m.def(
      "loss_and_grads(Tensor input, Tensor weight, Tensor? bias, Tensor target, Tensor ids,"
      " Tensor? log_expected_count, Tensor? target_log_expected_count, float inv_temperature,"
      " bool remove_accidental_hits, SymInt ignore_index, Tensor? row_scale, bool mean,"
      " bool sparse_grad, int products=0) -> (Tensor total, Tensor rows, Tensor grad_input, "
      "Tensor grad_weight,"
      " Tensor grad_bias, Tensor grad_rows)");
  // The same with sparse_grad on the CPU, gradients in the dtype of the sums: those of float16
  // parameters may have to be multiplied by a large factor before they are rounded.
  m.def(
      "loss_and_wide_grads(Tensor input, Tensor weight, Tensor? bias, Tensor target, Tensor ids,"
      " Tensor? log_expected_count, Tensor? target_log_expected_count, float inv_temperature,"
      " bool remove_accidental_hits, SymInt ignore_index, Tensor? row_scale, bool mean,"
      " int products=0)"
      " -> (Tensor total, Tensor rows, Tensor grad_input, Tensor grad_weight, Tensor grad_bias,"
      " Tensor grad_rows)");

  // The negatives' share of a loss whose targets' share is computed elsewhere: with z_is =
  // cap(logit) − log n_s, cap(x) = softcap tanh(x / softcap) if softcap > 0, the loss of a row is
  // log(1 + Σ_s exp(z_is − target_logit_i)), or, if `sigmoid`, Σ_s softplus(z_is). peak: max_s
  // z_is. The arguments in groups:
  //
  //   row     target_logit [B]; hits [B, K]: classes that a row leaves out of its peak, and of its
  //           sum if `remove_hits`, −1 is none; counted [B] bool: the other rows give 0 and no
  //           gradient
  //   source  ids and log_expected_count, [S] for all rows or [B, S]; +inf: the sample does not
  //           count, -inf, here and above: nothing to correct. Or the arguments of `sample` with
  //           per_row, from whose key the samples are drawn as they are needed; corrected: log n is
  //           subtracted
  //   logits  inv_temperature, softcap
  //   sum     remove_hits, sigmoid
  //   gradient  that of Σ_i row_scale_i loss_i, the results as in loss_and_grads. On a GPU a sparse
  //           one has N = S rows, with samples of rows N = min(C, B S)
  m.def(
      "negatives_rows(Tensor input, Tensor weight, Tensor? bias, Tensor target_logit, Tensor hits,"
      " Tensor? counted, Tensor? ids, Tensor? log_expected_count, Tensor? key, int kind,"
      " int num_classes, Tensor? table, Tensor? probability_bits, int num_drawable,"
      " int num_samples, int method, Tensor? tries, Tensor? exclude, bool corrected,"
      " float inv_temperature, float softcap, bool remove_hits, bool sigmoid, int products=0)"
      " -> (Tensor loss, Tensor peak)");
  m.def(
      "negatives_grads(Tensor input, Tensor weight, Tensor? bias, Tensor target_logit, Tensor hits,"
      " Tensor? counted, Tensor? ids, Tensor? log_expected_count, Tensor? key, int kind,"
      " int num_classes, Tensor? table, Tensor? probability_bits, int num_drawable,"
      " int num_samples, int method, Tensor? tries, Tensor? exclude, bool corrected,"
      " float inv_temperature, float softcap, bool remove_hits, bool sigmoid, Tensor row_scale,"
      " bool sparse_grad, int products=0) -> (Tensor grad_input, Tensor grad_weight,"
      " Tensor grad_bias, Tensor grad_rows)");
  // Both at once, on the CPU, for samples that all rows share: the losses, and the gradients with
  // sparse rows and in the dtype of the sums, so that the targets' share can be added to them. The
  // classes of target [B, T] (−1: none) are among those rows.
  m.def(
      "negatives_loss_and_grads(Tensor input, Tensor weight, Tensor? bias, Tensor target_logit,"
      " Tensor hits, Tensor? counted, Tensor ids, Tensor? log_expected_count,"
      " float inv_temperature, float softcap, bool remove_hits, bool sigmoid, Tensor row_scale,"
      " Tensor target, int products=0) -> (Tensor loss, Tensor peak, Tensor grad_input, Tensor "
      "grad_weight,"
      " Tensor grad_bias, Tensor grad_rows)");
  // The targets' share: products [B, T] of rows of input and of weight, 0 for target −1; and for
  // derivatives of the loss by these, coefficient [B, T], what they add to gradients as above,
  // which belong to `classes` [1, N]; bias_coefficient: the derivatives by the targets' biases.
  m.def("target_products(Tensor input, Tensor weight, Tensor target) -> Tensor");
  m.def(
      "add_target_grads(Tensor(a!) grad_input, Tensor(b!) grad_weight, Tensor(c!) grad_bias,"
      " Tensor classes, Tensor input, Tensor weight, Tensor target, Tensor coefficient,"
      " Tensor? bias_coefficient) -> ()");
  // Cosines: the rows weight[classes] divided by their norms, in the dtype of sums, and the norms;
  // and the gradient of these rows of weight from that of the unit rows.
  m.def("unit_rows(Tensor weight, Tensor classes) -> (Tensor unit, Tensor norm)");
  m.def("unit_rows_grad(Tensor grad, Tensor unit, Tensor norm) -> Tensor");

  // Exact cross entropy over all classes, streamed; logits [B, end - begin] of a range of classes,
  // float32 (float64 for float64 input) as all results per row.
  m.def(
      "exact_loss_rows(Tensor input, Tensor weight, Tensor? bias, Tensor target,"
      " float inv_temperature, SymInt ignore_index, int products=0) -> (Tensor loss, Tensor lse)");
  m.def(
      "logits(Tensor input, Tensor weight, Tensor? bias, SymInt begin, SymInt end,"
      " float inv_temperature, int products=0) -> Tensor");

  // A step of an optimizer for the rows `ids` of a parameter [C, D] or [C], or of all rows; without
  // values, what these rows owe. csrc/core/row_update.h has the rules and their options, and
  // csrc/cpu/update/update.h the tensors. ids are in rising order and order [N] says where the
  // gradient of each is in values [N, D]. step is one float32 number and counts on. On a GPU lr,
  // grad_scale and found_inf are there as tensors, or not at all; with found_inf nothing happens.
  m.def(
      "row_update(Tensor(a!) param, Tensor? values, Tensor? ids, Tensor? order, Tensor(b!)? first,"
      " Tensor(c!)? second, Tensor(d!)? compensation, Tensor(e!)? last_step, Tensor(f!)? history,"
      " int horizon, Tensor(g!) step, int rule, float lr, Tensor? lr_tensor, float beta1,"
      " float beta2, float eps, float l2, float decay, float lr_decay, float dampening,"
      " bool nesterov, bool maximize, bool replay, bool plain_eps, int rounding, int seed,"
      " Tensor? grad_scale, Tensor? found_inf) -> ()");
  // The first position of ids that is no row, and the first row of values with an inf or a NaN, if
  // `finite` asks for it; −1: none.
  m.def(
      "gradient_faults(Tensor values, Tensor? ids, int rows, bool finite) -> (int bad_id,"
      " int nonfinite)");
}
