#include "himar_trajectory.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "half.h"
#include "low_resolution.h"

namespace hmar::core {
namespace {

// Positions from `first` to before `stop` in every order, ascending.
Positions sorted_range(const Positions& orders, size_t first, size_t stop) {
    Positions rows;
    for (const auto& order : orders) {
        rows.emplace_back(order.begin() + ptrdiff_t(first), order.begin() + ptrdiff_t(stop));
        std::sort(rows.back().begin(), rows.back().end());
    }
    return rows;
}

// Equally long rows as a tensor (B, n).
Tensor to_tensor(const Positions& rows) {
    const Tensor tensor = make_tensor<int32_t>({int64_t(rows.size()), int64_t(rows[0].size())});
    auto* values = static_cast<int32_t*>(tensor.data.get());
    for (const auto& row : rows) values = std::copy(row.begin(), row.end(), values);
    return tensor;
}

// Per position of both grids its row among the known tokens, -1 = unknown.
Positions sources(const Positions& known, size_t num_tokens) {
    Positions rows;
    for (const auto& positions : known) {
        std::vector<int32_t>& row = rows.emplace_back(num_tokens, -1);
        for (size_t i = 0; i < positions.size(); ++i) row[size_t(positions[i])] = int32_t(i);
    }
    return rows;
}

// A copy with memory of its own.
Tensor copied(const Tensor& tensor) {
    const auto* bytes = static_cast<const char*>(tensor.data.get());
    const auto owner = std::make_shared<std::vector<char>>(bytes, bytes + tensor.nbytes());
    return {tensor.dtype, tensor.shape, std::shared_ptr<void>(owner, owner->data())};
}

// Puts rows (B, n, width) of any dtype at positions of (B, length, width).
void scatter(const void* rows, const Positions& positions, size_t length, size_t row_bytes, void* into) {
    const auto* from = static_cast<const char*>(rows);
    for (size_t b = 0; b < positions.size(); ++b) {
        for (const int32_t position : positions[b]) {
            std::memcpy(static_cast<char*>(into) + (b * length + size_t(position)) * row_bytes, from,
                        row_bytes);
            from += row_bytes;
        }
    }
}

Tensor scalar(float value) {
    const Tensor tensor = make_tensor<float>({1});
    *static_cast<float*>(tensor.data.get()) = value;
    return tensor;
}

}  // namespace

Tensor decode_dense(StepRunner& runner, const Tensor& dense) {
    const int64_t side = runner.manifest().image_side_px();
    const Tensor image = runner.run_for("image", runner.manifest().graph("decode"), {{"tokens", dense}});
    image.values<float>({dense.shape[0], 3, side, side}, "output image of decode");
    return image;
}

std::vector<float> decode_pivots(StepRunner& runner, const Tensor& pivots) {
    const HimarModelSpec& model = runner.manifest().himar();
    const int64_t side = model.image_side_px / model.dense_side * model.pivot_side;
    const Tensor image =
        runner.run_for("image", runner.manifest().graph("decode_pivot"), {{"tokens", pivots}});
    const Shape shape = {pivots.shape[0], 3, side, side};
    return to_small(image.values<float>(shape, "output image of decode_pivot"), size_t(shape[0]),
                    size_t(side));
}

HimarTrajectory::HimarTrajectory(StepRunner& runner, const HimarRequest& request, Part part)
    : runner_(runner),
      model_(runner.manifest().himar()),
      request_(request),
      part_(part),
      batch_(int64_t(part.count)),
      seeded_(dynamic_cast<const SeededHimarDraws*>(request.draws.get())),
      pivots_(make_tensor<float>({batch_, int64_t(model_.num_pivots()), model_.token_channels})),
      dense_(make_tensor<float>({batch_, int64_t(model_.num_dense()), model_.token_channels})) {
    for (size_t b = 0; seeded_ != nullptr && b < part.count; ++b) {
        image_index_.push_back(seeded_->image_index(part.first + b));
    }
}

void HimarTrajectory::run() {
    condition();
    sample_dense(sample_pivots());
    check_cancelled(request_.cancelled, part_);
}

void HimarTrajectory::condition() {
    std::vector<int32_t> labels(2 * part_.count, model_.num_classes);
    if (request_.cond == nullptr) {
        std::copy_n(request_.labels.begin() + ptrdiff_t(part_.first), part_.count, labels.begin());
    }
    cond_ = class_rows(labels);
    if (request_.cond != nullptr) {
        const size_t size = part_.count * size_t(model_.embed_dim);
        store(request_.cond + part_.first * size_t(model_.embed_dim), size, cond_.dtype, cond_.data.get());
    }
}

Tensor HimarTrajectory::class_rows(const std::vector<int32_t>& labels) {
    const Tensor rows = to_tensor({labels});
    const Tensor label{rows.dtype, {int64_t(labels.size())}, rows.data};
    const Tensor cond = runner_.run_for("cond", runner_.manifest().graph("cond"), {{"label", label}});
    cond.check_shape({int64_t(labels.size()), model_.embed_dim}, "output cond of cond");
    return copied(cond);
}

// Fills the pivots; returns of each the z (B, P, D) of the step that predicted it.
Tensor HimarTrajectory::sample_pivots() {
    const HimarSettings& settings = request_.settings;
    const size_t P = model_.num_pivots(), C = size_t(model_.token_channels);
    const int halves = settings.re_cfg != 1 ? 2 : 1;
    const Positions order = orders(Phase::pivot, P);
    const DiffusionSchedule schedule(settings.pivot_diffusion_steps);
    const std::vector<HimarStep> steps = plan(P, model_.pivot_steps(), settings.re_cfg, settings.grows);
    Tensor small_z;
    for (size_t s = 0; s < steps.size(); ++s) {
        const HimarStep& step = steps[s];
        const Positions known = sorted_range(order, step.unknown, P);
        const Positions predicted = sorted_range(order, step.remaining, step.unknown);
        Values feeds = {{"source", to_tensor(sources(known, P + model_.num_dense()))},
                        {"predicted", to_tensor(predicted)}};
        if (!known[0].empty()) feeds.insert({{"pivots", pivots_}, {"known", to_tensor(known)}});
        const GraphSpec& graph = runner_.manifest().graph("pivot", std::nullopt, int(s));
        const Values results = run_step(graph, feeds, halves);
        const Tensor z = StepRunner::output("z", graph, results);
        z.check_shape({halves * batch_, int64_t(predicted[0].size()), model_.embed_dim},
                      "output z of " + graph.name);
        const Denoising denoising{Phase::pivot, s,        step.weight, halves == 2, settings.temperature,
                                  predicted,    schedule, nullptr,     nullptr,     seed(),
                                  image_index_};
        const std::vector<float> tokens =
            sample_tokens(denoising, StepRunner::output("head_cond", graph, results));

        if (small_z.data == nullptr) small_z = make_tensor(z.dtype, {batch_, int64_t(P), model_.embed_dim});
        pivots_ = copied(pivots_);  // an earlier step's may still be fed or shown
        scatter(tokens.data(), predicted, P, C * sizeof(float), pivots_.data.get());
        scatter(z.data.get(), predicted, P, size_t(model_.embed_dim) * item_bytes(z.dtype),
                small_z.data.get());
        report(Phase::pivot, s, steps.size());
    }
    return small_z;
}

void HimarTrajectory::sample_dense(const Tensor& small_z) {
    const HimarSettings& settings = request_.settings;
    const size_t P = model_.num_pivots(), N = model_.num_dense(), C = size_t(model_.token_channels);
    const int halves = settings.cfg != 1 ? 2 : 1;
    const bool has_own_graphs = settings.num_iter == size_t(model_.num_iter);
    const Positions order = orders(Phase::dense, N);
    std::vector<int32_t> every(N);
    std::iota(every.begin(), every.end(), 0);
    const Positions positions(part_.count, every);
    const DiffusionSchedule schedule(settings.dense_diffusion_steps);
    const std::vector<HimarStep> steps = plan(N, settings.num_iter, settings.cfg, settings.grows);
    for (size_t k = 0; k < steps.size(); ++k) {
        const Positions known = sorted_range(order, steps[k].unknown, N);
        std::vector<bool> is_known(part_.count * N);
        Positions in_both_grids;
        for (size_t b = 0; b < part_.count; ++b) {
            std::vector<int32_t>& row = in_both_grids.emplace_back(P);
            std::iota(row.begin(), row.end(), 0);
            for (const int32_t i : known[b]) {
                row.push_back(int32_t(P) + i);
                is_known[b * N + size_t(i)] = true;
            }
        }
        // the pivots' z are those of the conditional half in both halves
        Values feeds = {{"small_z", small_z}, {"source", to_tensor(sources(in_both_grids, P + N))}};
        if (!known[0].empty()) feeds.insert({{"dense", dense_}, {"known", to_tensor(known)}});
        const auto own = k == 0 || has_own_graphs ? std::optional<int>(k) : std::nullopt;
        const GraphSpec& graph = runner_.manifest().graph("dense", std::nullopt, own);
        const Values results = run_step(graph, feeds, halves);
        const Denoising denoising{Phase::dense,
                                  k,
                                  steps[k].weight,
                                  halves == 2,
                                  settings.temperature,
                                  positions,
                                  schedule,
                                  &is_known,
                                  static_cast<const float*>(dense_.data.get()),
                                  seed(),
                                  image_index_};
        const std::vector<float> sampled =
            sample_tokens(denoising, StepRunner::output("head_cond", graph, results));

        dense_ = copied(dense_);
        auto* tokens = static_cast<float*>(dense_.data.get());
        for (size_t i = 0; i < is_known.size(); ++i) {  // all that was unknown, also what later steps replace
            if (!is_known[i]) std::copy_n(&sampled[i * C], C, tokens + i * C);
        }
        report(Phase::dense, k, steps.size());
    }
}

// A step graph, with the same input for each half of the guided batch.
Values HimarTrajectory::run_step(const GraphSpec& graph, const Values& feeds, int halves) {
    check_cancelled(request_.cancelled, part_);
    Values repeated_feeds;
    for (const auto& [name, value] : feeds) repeated_feeds[name] = repeated(value, halves);
    repeated_feeds["cond"] = {cond_.dtype, {halves * batch_, model_.embed_dim}, cond_.data};
    return runner_.run(graph, repeated_feeds);
}

// Tokens (B, n, C) by reverse diffusion; at once where the backend can, else one call after the other.
std::vector<float> HimarTrajectory::sample_tokens(const Denoising& step, const Tensor& head_cond) {
    if (seeded_ != nullptr) {
        check_cancelled(request_.cancelled, part_);
        if (auto done = runner_.denoise(step, head_cond)) return std::move(*done);
    }
    const size_t C = size_t(model_.token_channels), n = step.positions[0].size();
    const Shape shape = {batch_, int64_t(n), model_.token_channels};
    const std::string kind = step.phase == Phase::pivot ? "denoise_pivot" : "denoise_dense";
    const GraphSpec& graph = runner_.manifest().graph(step.is_guided ? kind : kind + "_unguided");
    const auto noise = [&](size_t draw) {
        return request_.draws->noise(part_, step.phase, step.step_idx, draw, step.positions, C);
    };
    Values feeds = {{"head_cond", head_cond}, {"scale", scalar(float(step.weight))}};
    const std::vector<float> first = noise(0);
    std::vector<float> x = first;
    for (size_t i = step.schedule.num_steps(); i-- > 0;) {
        check_cancelled(request_.cancelled, part_);
        if (step.is_held != nullptr) {
            for (size_t v = 0; v < x.size(); ++v) {
                if ((*step.is_held)[v / C]) x[v] = step.schedule.noised(i, step.held_tokens[v], first[v]);
            }
        }
        const Tensor state = make_tensor<float>(shape), timestep = make_tensor<int32_t>({1});
        std::copy(x.begin(), x.end(), static_cast<float*>(state.data.get()));
        *static_cast<int32_t*>(timestep.data.get()) = step.schedule.timestep(i);
        feeds["x"] = state;
        feeds["timestep"] = timestep;
        const Values results = runner_.run(graph, feeds);
        const Tensor predicted = StepRunner::output("noise", graph, results);
        const auto variance = results.find("variance");
        step.schedule.reverse(i, predicted.values<float>(shape, "output noise of " + graph.name),
                              variance == results.end()
                                  ? nullptr
                                  : variance->second.values<float>(shape, "output variance of " + graph.name),
                              i > 0 ? noise(step.schedule.num_steps() - i).data() : nullptr,
                              float(step.temperature), x);
    }
    return x;
}

Positions HimarTrajectory::orders(Phase phase, size_t length) const {
    Positions orders;
    for (size_t b = 0; b < part_.count; ++b)
        orders.push_back(request_.draws->order(part_.first + b, phase, length));
    return orders;
}

void HimarTrajectory::report(Phase phase, size_t step_idx, size_t num_steps) {
    if (!request_.on_step) return;
    const Tensor& tokens = phase == Phase::pivot ? pivots_ : dense_;
    const auto preview = [&](uint8_t* pixels) {
        if (phase == Phase::pivot) {
            to_uint8(decode_pivots(runner_, tokens).data(), part_.count, kSmallSidePx, pixels);
        } else {
            const Tensor image = decode_dense(runner_, tokens);
            to_uint8(static_cast<const float*>(image.data.get()), part_.count, size_t(model_.image_side_px),
                     pixels);
        }
    };
    request_.on_step(
        {phase, step_idx, num_steps, part_, static_cast<const float*>(tokens.data.get()), preview});
}

}  // namespace hmar::core
