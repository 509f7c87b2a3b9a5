#include "csrc/cpu/loss/plan.h"

#include <algorithm>
#include <utility>

#include "csrc/cpu/loss/merge.h"

namespace ssc {
namespace {

// Index of the first of values[0:n] outside [0, classes) and not `allowed`; −1 if none.
int64_t first_outside(const int64_t* values, int64_t n, int64_t classes, int64_t allowed) {
  for (int64_t i = 0; i < n; ++i) {
    if (static_cast<uint64_t>(values[i]) >= static_cast<uint64_t>(classes) && values[i] != allowed)
      return i;
  }
  return -1;
}

void take_samples(SamplePlan& plan, int64_t samples, Workspace& workspace) {
  plan.ids = workspace.take<int64_t>(samples);
  plan.log_count = workspace.take<double>(samples);
  plan.log_copies = workspace.take<double>(samples);
  plan.slot = workspace.take<int64_t>(samples);
}

// The next distinct sample: a run of equal ids.
void add_sample(SamplePlan& plan, const Entry* begin, const Entry* end,
                const LogCounts& log_counts) {
  const auto [least, log_copies] = log_counts.merged(begin, end);
  plan.slot[plan.distinct] = plan.touched_count;
  plan.ids[plan.distinct] = begin->id;
  plan.log_count[plan.distinct] = least - log_copies;
  plan.log_copies[plan.distinct] = log_copies;
  ++plan.distinct;
}

}  // namespace

SamplePlan plan_samples(const int64_t* ids, int64_t samples, const void* log_expected_count,
                        DType log_count_dtype, const int64_t* target, int64_t batch,
                        int64_t classes, int64_t ignore_index, bool remove_accidental_hits,
                        Workspace& workspace) {
  SamplePlan plan;
  plan.remove_hits = remove_accidental_hits;
  plan.bad_target = first_outside(target, batch, classes, ignore_index);
  plan.bad_id = first_outside(ids, samples, classes, 0);
  if (plan.bad_target >= 0 || plan.bad_id >= 0) return plan;

  plan.row_ids = workspace.take<int64_t>(batch);
  auto* entries = workspace.take<Entry>(samples + batch);
  for (int64_t s = 0; s < samples; ++s) entries[s] = {ids[s], s};
  for (int64_t i = 0; i < batch; ++i) {
    if (target[i] == ignore_index) continue;
    entries[samples + plan.rows] = {target[i], samples + plan.rows};
    plan.row_ids[plan.rows++] = i;
  }
  plan.targets = plan.rows;
  const int64_t count = samples + plan.rows;
  const Entry* sorted = sort_by_id(entries, workspace.take<Entry>(count), count, classes);

  take_samples(plan, samples, workspace);
  plan.hit = workspace.take<int64_t>(plan.rows);
  plan.touched = workspace.take<int64_t>(count);
  plan.by_target = workspace.take<int64_t>(plan.rows);
  plan.by_target_slot = workspace.take<int64_t>(plan.rows);

  const LogCounts log_counts(log_expected_count, log_count_dtype);
  int64_t targets = 0;
  for (const Entry *run = sorted, *end = sorted + count; run < end;) {
    const Entry* e = run;
    while (e < end && e->id == run->id && e->source < samples) ++e;  // stable: samples come first
    const bool sampled = e > run;
    const int64_t sample = sampled ? plan.distinct : -1;
    if (sampled) add_sample(plan, run, e, log_counts);
    for (; e < end && e->id == run->id; ++e) {
      const int64_t row = e->source - samples;
      plan.hit[row] = sample;
      plan.by_target[targets] = row;
      plan.by_target_slot[targets++] = plan.touched_count;
    }
    plan.touched[plan.touched_count++] = run->id;
    run = e;
  }
  return plan;
}

namespace {

// The plan's samples [first, last) of a class.
std::pair<int64_t, int64_t> samples_of(const SamplePlan& plan, int64_t id) {
  const int64_t* const end = plan.ids + plan.distinct;
  const int64_t* const first = std::lower_bound<const int64_t*>(plan.ids, end, id);
  const int64_t* last = first;
  while (last != end && *last == id) ++last;
  return {first - plan.ids, last - plan.ids};
}

// For each row that counts, which of the plan's samples are of its classes hits[row][0:count]:
// rising, each once.
void list_hits(const int64_t* hits, int64_t count, SamplePlan& plan, Workspace& workspace) {
  plan.hit_begin = workspace.take<int64_t>(plan.rows + 1);
  int64_t most = plan.rows * count;
  if (plan.uneven) {
    most = 0;
    for (int64_t i = 0; i < plan.rows; ++i) {
      for (int64_t k = 0; k < count; ++k) {
        const auto [first, last] = samples_of(plan, hits[plan.row_ids[i] * count + k]);
        most += last - first;
      }
    }
  }
  plan.hit_list = workspace.take<int64_t>(most);
  int64_t total = 0;
  for (int64_t i = 0; i < plan.rows; ++i) {
    plan.hit_begin[i] = total;
    int64_t* const first = plan.hit_list + total;
    int64_t* last = first;
    for (int64_t k = 0; k < count; ++k) {
      const auto [begin, end] = samples_of(plan, hits[plan.row_ids[i] * count + k]);
      for (int64_t s = begin; s < end; ++s) *last++ = s;
    }
    std::sort(first, last);
    total += std::unique(first, last) - first;
  }
  plan.hit_begin[plan.rows] = total;
}

}  // namespace

SamplePlan plan_negatives(const int64_t* ids, int64_t samples, const void* log_expected_count,
                          DType log_count_dtype, const int64_t* hits, int64_t hit_count,
                          const bool* counted, int64_t batch, int64_t classes, bool remove_hits,
                          bool sigmoid, const int64_t* others, int64_t other_count,
                          Workspace& workspace) {
  SamplePlan plan;
  plan.remove_hits = remove_hits;
  plan.bad_id = first_outside(ids, samples, classes, 0);
  if (plan.bad_id >= 0) return plan;
  plan.row_ids = workspace.take<int64_t>(batch);
  for (int64_t i = 0; i < batch; ++i) {
    if (counted == nullptr || counted[i]) plan.row_ids[plan.rows++] = i;
  }
  int64_t count = samples;
  auto* entries = workspace.take<Entry>(samples + other_count);
  for (int64_t s = 0; s < samples; ++s) entries[s] = {ids[s], s};
  for (int64_t j = 0; j < other_count; ++j) {
    if (others[j] >= 0) entries[count++] = {others[j], samples};
  }
  const Entry* sorted = sort_by_id(entries, workspace.take<Entry>(count), count, classes);
  take_samples(plan, samples, workspace);
  plan.touched = workspace.take<int64_t>(count);
  const LogCounts log_counts(log_expected_count, log_count_dtype);
  for (const Entry *run = sorted, *end = sorted + count; run < end;) {
    const Entry* e = run;
    while (e < end && e->id == run->id && e->source < samples) ++e;  // stable: samples come first
    if (e == run) {
      // No sample of this class.
    } else if (!sigmoid || log_counts.alike(run, e)) {
      add_sample(plan, run, e, log_counts);
    } else {
      plan.uneven = true;
      for (const Entry* copy = run; copy < e; ++copy) add_sample(plan, copy, copy + 1, log_counts);
    }
    plan.touched[plan.touched_count++] = run->id;
    for (const int64_t id = run->id; e < end && e->id == id;) ++e;
    run = e;
  }
  list_hits(hits, hit_count, plan, workspace);
  return plan;
}

}  // namespace ssc
