#include "hmar_trajectory.h"

#include <algorithm>

namespace hmar::core {
namespace {

// A view of tokens (B, l) as maps (B, pn, pn).
Tensor as_maps(const Tensor& tokens, int64_t pn) {
    return {tokens.dtype, {tokens.shape[0], pn, pn}, tokens.data};
}

}  // namespace

Tensor decode(StepRunner& runner, const Tensor& f_hat) {
    const int64_t side = runner.manifest().hmar().image_side_px;
    const Tensor image = runner.run_for("image", runner.manifest().graph("decode"), {{"f_hat", f_hat}});
    image.values<float>({f_hat.shape[0], 3, side, side}, "output image of decode");
    return image;
}

HmarTrajectory::HmarTrajectory(StepRunner& runner, const HmarRequest& request, Part part)
    : runner_(runner),
      model_(runner.manifest().hmar()),
      request_(request),
      settings_(request.settings),
      part_(part),
      batch_(int64_t(part.count)),
      sampler_(size_t(model_.vocab_size), settings_.top_k, settings_.top_p) {}

Tensor HmarTrajectory::run() {
    const int64_t P = model_.patch_nums.back();
    const int S = model_.num_scales();
    const Shape f_hat_shape = {batch_, model_.latent_channels, P, P};
    Tensor f_hat = make_tensor<float>(f_hat_shape);
    for (int k = 0; k < S; ++k) {
        const int pn = model_.patch_nums[size_t(k)];
        const Tensor tokens = predict(k);
        const GraphSpec& quant = runner_.manifest().graph("quant", k);
        const Values results = runner_.run(quant, {{"tokens", as_maps(tokens, pn)}, {"f_hat", f_hat}});
        f_hat = StepRunner::output("f_hat_out", quant, results);
        f_hat.values<float>(f_hat_shape, "output f_hat_out of " + quant.name);
        if (k + 1 < S) {
            maps_.push_back(StepRunner::output("map", quant, results));
            maps_.back().values<float>(map_shape(k + 1), "output map of " + quant.name);
        }
        tokens_.push_back(tokens);
        if (request_.on_scale) {
            const auto preview = [&](uint8_t* pixels) {
                const Tensor image = decode(runner_, f_hat);
                const auto* values = static_cast<const float*>(image.data.get());
                to_uint8(values, part_.count, size_t(model_.image_side_px), pixels);
            };
            const auto* values = static_cast<const int32_t*>(tokens.data.get());
            request_.on_scale({k, pn, S, part_, values, preview});
        }
    }
    check_cancelled(request_.cancelled, part_);
    return f_hat;
}

// Final tokens (B, pn * pn) of one scale: the next-scale pass, then its masked passes. Masked passes predict
// tokens that are not known; where some are, the same share of the others as of all where none is, rounded
// up.
Tensor HmarTrajectory::predict(int k) {
    const size_t length = model_.length(k);
    const Shape shape = {batch_, int64_t(length)};
    const Tensor tokens = make_tensor<int32_t>(shape);
    auto* tokens_Bl = tokens.values<int32_t>(shape, "tokens");
    keep_known(k, tokens_Bl);
    std::vector<std::vector<int32_t>> open = open_positions(k);
    if (std::all_of(open.begin(), open.end(), [](const auto& row) { return row.empty(); })) return tokens;

    std::vector<size_t> num_open;
    const Tensor is_open = make_tensor<bool>(shape);
    auto* is_open_Bl = is_open.values<bool>(shape, "token_mask");
    const auto mark_open = [&] {
        std::fill_n(is_open_Bl, part_.count * length, false);
        for (size_t b = 0; b < part_.count; ++b) {
            for (const int32_t i : open[b]) is_open_Bl[b * length + size_t(i)] = true;
        }
    };
    for (const auto& row : open) num_open.push_back(row.size());
    mark_open();
    std::vector<float> confidences_Bl(part_.count * length);
    double t = guidance(settings_.cfg, k, model_.num_scales());
    draw(k, 0, next_scale_logits(k, halves(t)), t, is_open_Bl, tokens_Bl, confidences_Bl.data());
    if (settings_.schedule.empty()) return tokens;

    t = masked_guidance(settings_.cfg);
    int pass = 0;
    for (const size_t count : masked_counts(settings_.schedule[size_t(k)], length)) {
        for (size_t b = 0; b < part_.count; ++b) {
            const size_t share = (count * num_open[b] + length - 1) / length;
            open[b] = least_confident(&confidences_Bl[b * length], open[b], share);
        }
        mark_open();
        const Tensor logits = mask_logits(k, tokens, is_open, halves(t));
        draw(k, ++pass, logits, t, is_open_Bl, tokens_Bl, confidences_Bl.data());
    }
    return tokens;
}

// Positions of one scale that the generation chooses, for every image.
std::vector<std::vector<int32_t>> HmarTrajectory::open_positions(int k) const {
    std::vector<std::vector<int32_t>> open(part_.count);
    const uint8_t* keep = request_.known.keep;
    for (size_t b = 0; b < part_.count; ++b) {
        const size_t first = (part_.first + b) * model_.num_tokens() + model_.first(k);
        for (size_t i = 0; i < model_.length(k); ++i) {
            if (keep == nullptr || keep[first + i] == 0) open[b].push_back(int32_t(i));
        }
    }
    return open;
}

// Puts the known tokens of one scale in their places.
void HmarTrajectory::keep_known(int k, int32_t* tokens_Bl) const {
    const KnownTokens& known = request_.known;
    if (known.keep == nullptr) return;
    for (size_t b = 0; b < part_.count; ++b) {
        const size_t first = (part_.first + b) * model_.num_tokens() + model_.first(k);
        for (size_t i = 0; i < model_.length(k); ++i, ++tokens_Bl) {
            if (known.keep[first + i] != 0) *tokens_Bl = known.tokens[first + i];
        }
    }
}

// Draws the open tokens of one pass; what it would draw for the others is not taken over.
void HmarTrajectory::draw(int k, int pass, const Tensor& logits, double t, const bool* is_open_Bl,
                          int32_t* tokens_Bl, float* confidences_Bl) {
    const size_t length = model_.length(k), V = size_t(model_.vocab_size);
    const auto* cond_BlV = static_cast<const float*>(logits.data.get());
    const float* uncond_BlV = halves(t) == 2 ? cond_BlV + part_.count * length * V : nullptr;
    for (size_t place = 0; place < part_.count * length; ++place) {
        if (!is_open_Bl[place]) continue;
        if (uncond_BlV == nullptr) {
            sampler_.load(cond_BlV + place * V);
        } else {
            sampler_.load_guided(cond_BlV + place * V, uncond_BlV + place * V, t);
        }
        const auto u = request_.draws->at(part_.first + place / length, k, pass, place % length);
        const Choice choice = sampler_.choose(u);
        tokens_Bl[place] = choice.token;
        confidences_Bl[place] = choice.confidence;
    }
}

Tensor HmarTrajectory::next_scale_logits(int k, int halves) {
    if (settings_.sees_prefix && k > 0) return prefix_logits(k, halves);
    Values feeds;
    if (k > 0) feeds["map"] = repeated(maps_.back(), halves);
    return logits(runner_.manifest().graph("ns", k), feeds, halves, int64_t(model_.length(k)));
}

// Logits of a scale whose tokens see all earlier scales, as with a key-value cache.
Tensor HmarTrajectory::prefix_logits(int k, int halves) {
    const int64_t C = model_.latent_channels, num_maps = int64_t(model_.first(k + 1)) - 1,
                  V = model_.vocab_size;
    const Tensor map = make_tensor<float>({batch_, num_maps, C});
    auto* packed = map.values<float>(map.shape, "map");
    for (int64_t b = 0; b < batch_; ++b) {
        for (size_t s = 0; s < maps_.size(); ++s) {
            const auto length = int64_t(model_.length(int(s) + 1));
            const auto* values = static_cast<const float*>(maps_[s].data.get());
            packed = std::copy_n(values + b * length * C, length * C, packed);
        }
    }
    const Tensor cu_seqlens = make_tensor<int32_t>({k + 2});
    auto* starts = cu_seqlens.values<int32_t>({k + 2}, "cu_seqlens");
    for (int s = 0; s <= k + 1; ++s) starts[s] = int32_t(model_.first(s));

    const auto total = int64_t(model_.first(k + 1)), length = int64_t(model_.length(k));
    const Values feeds = {{"map", repeated(map, halves)}, {"cu_seqlens", cu_seqlens}};
    const Tensor all = logits(runner_.manifest().graph("ns_prefix"), feeds, halves, total);
    const Tensor last = make_tensor<float>({halves * batch_, length, V});
    const auto* from = static_cast<const float*>(all.data.get());
    auto* to = static_cast<float*>(last.data.get());
    for (int64_t row = 0; row < halves * batch_; ++row) {
        to = std::copy_n(from + ((row + 1) * total - length) * V, length * V, to);
    }
    return last;
}

Tensor HmarTrajectory::mask_logits(int k, const Tensor& tokens, const Tensor& token_mask, int halves) {
    const Manifest& manifest = runner_.manifest();
    const Values inputs = {{"tokens", as_maps(tokens, model_.patch_nums[size_t(k)])}};
    const GraphSpec& mask_input = manifest.graph("mask_input", k);
    const Tensor h = runner_.run_for("h", mask_input, inputs);
    h.values<float>(map_shape(k), "output h of " + mask_input.name);
    const Values feeds = {{"map", repeated(maps_.back(), halves)},
                          {"h", repeated(h, halves)},
                          {"token_mask", repeated(token_mask, halves)}};
    return logits(manifest.graph("mask", k), feeds, halves, int64_t(model_.length(k)));
}

// Output of a transformer pass, (halves * B, length, V) float32.
Tensor HmarTrajectory::logits(const GraphSpec& graph, Values feeds, int halves, int64_t length) {
    check_cancelled(request_.cancelled, part_);
    std::optional<Values>& conditions = conditions_[halves - 1];
    if (!conditions) {
        const Tensor labels = make_tensor<int32_t>({halves * batch_});
        auto* rows = labels.values<int32_t>(labels.shape, "label");
        std::copy_n(request_.labels.begin() + ptrdiff_t(part_.first), part_.count, rows);
        std::fill(rows + batch_, rows + halves * batch_, model_.num_classes);
        conditions = runner_.run(runner_.manifest().graph("cond"), {{"label", labels}});
    }
    feeds.insert(conditions->begin(), conditions->end());
    const Tensor logits = runner_.run_for("logits", graph, feeds);
    logits.values<float>({halves * batch_, length, model_.vocab_size}, "output logits of " + graph.name);
    return logits;
}

}  // namespace hmar::core
