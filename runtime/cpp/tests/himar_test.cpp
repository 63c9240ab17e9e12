// Hi-MAR's rules, without a bundle.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "check.h"
#include "diffusion.h"
#include "error.h"
#include "half.h"
#include "himar_draws.h"
#include "low_resolution.h"
#include "manifest.h"
#include "normals.h"

using namespace hmar::core;

namespace {

void test_plan() {
    const auto steps = plan(16, 4, 3.0, true);
    std::vector<size_t> unknown, remaining;
    for (const HimarStep& step : steps) unknown.push_back(step.unknown), remaining.push_back(step.remaining);
    CHECK((unknown == std::vector<size_t>{16, 14, 11, 6}));
    CHECK((remaining == std::vector<size_t>{14, 11, 6, 0}));
    CHECK(steps[0].weight == 1.25 && steps[3].weight == 1 + 2 * 15.0 / 16);
    CHECK(plan(16, 4, 3.0, false)[0].weight == 3.0);
    CHECK(plan(64, 1, 1.0, true)[0].remaining == 0);
}

void test_timesteps() {
    const auto some = respaced_timesteps("3,2,0,1");
    CHECK((some == std::vector<int32_t>{0, 124, 249, 250, 499, 750}));
    const auto all = respaced_timesteps("1000");
    CHECK(all.size() == 1000 && all[999] == 999);
    for (const char* wrong : {"", "1001", "100,", "a", "300,0,0,0", "-1", "1", "0,0", "1e2"}) {
        CHECK_THROWS(respaced_timesteps(wrong), Error, "diffusion steps '");
    }
}

// Without noise, a denoiser that knows the noise leads back to the token.
void test_diffusion() {
    const DiffusionSchedule schedule("50");
    const float token = 0.75f, noise = -1.5f;
    std::vector<float> x = {schedule.noised(49, token, noise)};
    for (size_t i = 50; i-- > 0;) {
        const float predicted[] = {noise}, no_noise[] = {0};
        schedule.reverse(i, predicted, nullptr, no_noise, 1.0f, x);
        if (i > 0) CHECK(std::isfinite(x[0]));
    }
    CHECK(std::fabs(schedule.noised(0, token, noise) - token) < 0.1f);
    std::vector<float> last = {schedule.noised(0, token, noise)};
    const float predicted[] = {noise}, variance[] = {0.3f};
    schedule.reverse(0, predicted, variance, nullptr, 1.0f, last);
    CHECK(std::fabs(last[0] - token) < 1e-5f);
}

void test_normals() {
    std::vector<int32_t> positions(5000);
    std::iota(positions.begin(), positions.end(), 0);
    const auto z = normals(1, 2, Phase::dense, 3, 4, positions, 6);
    double sum = 0, squares = 0;
    for (const float value : z) sum += value, squares += double(value) * value;
    CHECK(z.size() == 30000 && std::fabs(sum / 30000) < 0.02 && std::fabs(squares / 30000 - 1) < 0.03);
    const auto some = normals(1, 2, Phase::dense, 3, 4, {7, 2}, 6);
    CHECK(std::equal(some.begin(), some.begin() + 6, z.begin() + 42));
    CHECK(normals(1, 2, Phase::pivot, 3, 4, {7}, 6) != normals(1, 2, Phase::dense, 3, 4, {7}, 6));
    auto sorted = order(5, 1, Phase::pivot, 16);
    CHECK(sorted != order(5, 2, Phase::pivot, 16));
    std::sort(sorted.begin(), sorted.end());
    CHECK(sorted[0] == 0 && sorted[15] == 15);
}

void test_given_draws() {
    const auto noise = [](Part, Phase, size_t, size_t, const Positions&, size_t) {
        return std::vector<float>{};
    };
    const std::vector<int32_t> orders = {0, 2, 1, 0, 1, 0, 0, 1};  // 1 pivot and 3 dense tokens of 2 images
    CHECK_THROWS(GivenHimarDraws(orders.data(), 2, 1, 3, noise), Error,
                 "those of image 1 are no permutations");
    const GivenHimarDraws draws(orders.data(), 1, 1, 3, noise);
    CHECK((draws.order(0, Phase::dense, 3) == std::vector<int32_t>{2, 1, 0}));
}

void test_half_precision() {
    const float values[] = {1.0f, -2.5f, 65504.0f, 65520.0f, 0x1p-24f, 0x1.ffep-15f, 0.1f, -0.0f, 2049.0f};
    uint16_t halves[9], expected[] = {0x3C00, 0xC100, 0x7BFF, 0x7C00, 0x0001, 0x0400, 0x2E66, 0x8000, 0x6800};
    store(values, 9, Dtype::float16, halves);
    CHECK(std::equal(halves, halves + 9, expected));
    uint16_t brains[9];
    store(values, 9, Dtype::bfloat16, brains);
    CHECK(brains[0] == 0x3F80 && brains[1] == 0xC020 && brains[6] == 0x3DCD);
    CHECK_THROWS(store(values, 9, Dtype::int32, halves), Error, "int32");
}

void test_low_resolution() {
    const std::vector<float> flat(3 * 32 * 32, 0.25f);
    for (const float value : to_small(flat.data(), 1, 32)) CHECK(std::fabs(value - 0.25f) < 1e-6f);
    std::vector<float> same(3 * 64 * 64);
    std::iota(same.begin(), same.end(), 0.0f);
    CHECK(to_small(same.data(), 1, 64) == same);
}

void test_manifest() {
    const std::string json =
        R"({"format_version": 1, "producer": "test", "family": "himar", "precision": "fp16",
"opset": 20, "model": {"preset": "himar-base-256", "embed_dim": 768, "encoder_depth": 24, "decoder_depth": 24,
"num_classes": 0, "token_channels": 16, "pivot_side": 4, "dense_side": 16, "num_iter": 4, "image_side_px": 256},
"sampling": {"num_iter": 4, "cfg": 2.5, "re_cfg": 2.7, "cfg_schedule": "linear", "temperature": 1.0,
"pivot_diffusion_steps": "100", "dense_diffusion_steps": "250"}, "graphs": {},
"weights": {"file": "graphs/weights.bin", "sha256": "00", "nbytes": 64}, "tensors": {}, "plugins": [],
"sources": []})";
    const Manifest manifest = parse_manifest(json, "m");
    CHECK(manifest.himar().num_dense() == 256 && manifest.himar().pivot_steps() == 16);
    CHECK_THROWS(manifest.hmar(), Error, "needs a bundle of HMAR; this one is of family 'himar'");
    std::string odd = json;
    odd.replace(odd.find("linear"), 6, "cosine");
    CHECK_THROWS(parse_manifest(odd, "m"), Error, "cfg_schedule must be linear or constant");
}

}  // namespace

int main() {
    test_plan();
    test_timesteps();
    test_diffusion();
    test_normals();
    test_given_draws();
    test_half_precision();
    test_low_resolution();
    test_manifest();
    return checked();
}
