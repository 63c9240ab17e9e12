// Parts of the library that need neither a bundle nor an inference library.
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "draws.h"
#include "handles.h"
#include "hmar_trajectory.h"
#include "manifest.h"
#include "philox.h"
#include "sampler.h"
#include "sha256.h"
#include "sha256_x86.h"

using namespace hmar::core;

namespace {

// The vectors published with the generator.
void test_philox() {
    CHECK((philox_4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    const uint32_t ones = 0xffffffff;
    CHECK((philox_4x32({ones, ones, ones, ones}, {ones, ones}) ==
           Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    for (uint32_t i = 0; i < 1000; ++i) {
        const double u = uniform(7, uint64_t{1} << 40, 3, 2, i);
        CHECK(u >= 0 && u < 1);
    }
}

std::string sha256_of(const std::string& data, size_t step, bool by_instructions) {
    Sha256 sha256(by_instructions);
    for (size_t i = 0; i < data.size(); i += step) sha256.update(&data[i], std::min(step, data.size() - i));
    return sha256.hex();
}

void test_sha256(bool by_instructions) {
    const auto digest = [&](const std::string& data, size_t step) {
        return sha256_of(data, step, by_instructions);
    };
    CHECK(digest("", 1) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(digest("abc", 1) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const std::string million(1000000, 'a');
    for (const size_t step : {size_t{1000000}, size_t{63}, size_t{128}}) {
        CHECK(digest(million, step) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
}

void test_schedule() {
    using Counts = std::vector<size_t>;
    CHECK((masked_counts({1, 1, 2, 5}, 9) == Counts{8, 7, 5}));
    CHECK((masked_counts({0, 3, 100}, 9) == Counts{9, 9}));
    CHECK(masked_counts({16}, 16).empty());
    CHECK(masked_counts({}, 16).empty());
    CHECK(masked_counts({1, 3}, 1).empty());
    CHECK_THROWS(check_schedule({{1}}, 2, HMAR_INVALID_ARGUMENT, "schedule"), Error,
                 "has 1 entries, the model has 2");
    CHECK_THROWS(check_schedule({{1}, {1, -3}}, 2, HMAR_INVALID_ARGUMENT, "schedule"), Error, "schedule[1]");
    const Schedule long_entry = {{}, std::vector<int32_t>(257, 1)};
    CHECK_THROWS(check_schedule(long_entry, 2, HMAR_INVALID_ARGUMENT, "schedule"), Error,
                 "256 masked passes");
}

void test_given_draws() {
    const std::vector<int32_t> patch_nums = {1, 2};
    const Schedule schedule = {{1}, {1, 3}};
    std::vector<double> uniforms;  // 2 images: 1 token, then 4 tokens in two passes
    for (int i = 0; i < 18; ++i) uniforms.push_back(i / 100.0);
    const GivenDraws draws(uniforms.data(), 18, patch_nums, schedule, 2);
    CHECK(draws.at(1, 0, 0, 0) == 0.01);
    CHECK(draws.at(0, 1, 0, 0) == 0.02);
    CHECK(draws.at(1, 1, 1, 3) == 0.17);
    CHECK_THROWS(GivenDraws(uniforms.data(), 17, patch_nums, schedule, 2), Error, "expected 18 numbers");
    uniforms[5] = 1;
    CHECK_THROWS(GivenDraws(uniforms.data(), 18, patch_nums, schedule, 2), Error, "uniforms[5] is 1");
    uniforms[5] = std::nan("");
    CHECK_THROWS(GivenDraws(uniforms.data(), 18, patch_nums, schedule, 2), Error, "uniforms[5]");
}

void test_sampler() {
    const float infinity = std::numeric_limits<float>::infinity();
    Sampler sampler(4, 2, 0);
    const float logits[] = {1, 3, 2, 3};
    sampler.load(logits);
    Choice choice = sampler.choose(0.49);
    CHECK(choice.token == 1 && choice.confidence == 0.5f);
    CHECK(sampler.choose(0.51).token == 3);
    CHECK(sampler.choose(std::nullopt).token == 1);
    for (const float bad : {infinity, std::nanf("")}) {
        const float broken[] = {1, 3, bad, 3};
        sampler.load(broken);
        CHECK_THROWS(sampler.choose(0.5), Error, "infinite or not numbers");
    }
    const float uncond[] = {0, 3, 2, 1};
    sampler.load_guided(logits, uncond, 1);  // 2, 3, 2, 5
    CHECK(sampler.choose(std::nullopt).token == 3);
    const float confidence[] = {0.5f, 0.1f, 0.5f, 0.1f};
    CHECK((least_confident(confidence, {0, 1, 2, 3}, 3) == std::vector<int32_t>{1, 3, 0}));
    CHECK((least_confident(confidence, {2, 3}, 9) == std::vector<int32_t>{3, 2}));
}

void test_pixels() {
    const float image[] = {0,          -1,         0.5f, 2, 1, std::nanf(""),
                           1.5f / 255, 2.5f / 255, 0,    0, 0, 0};  // (1, 3, 2, 2)
    uint8_t pixels[12];
    to_uint8(image, 1, 2, pixels);
    const uint8_t expected[] = {0, 255, 0, 0, 0, 0, 128, 2, 0, 255, 2, 0};
    CHECK(std::memcmp(pixels, expected, sizeof expected) == 0);
}

void test_handles() {
    Handles<hmar_bundle, int> numbers("number");
    const hmar_bundle first = numbers.add(std::make_shared<int>(1)),
                      second = numbers.add(std::make_shared<int>(2));
    const auto kept = numbers.find(first);
    numbers.remove(first);
    CHECK(*kept == 1 && *numbers.find(second) == 2);
    CHECK_THROWS(numbers.remove(first), Error, "no open number");
    CHECK_THROWS(numbers.find(nullptr), Error, "no open number");
}

std::string manifest(const std::string& change = "", const std::string& to = "") {
    std::string json = R"({"format_version": 1, "producer": "test", "family": "hmar", "precision": "fp32",
"opset": 20, "model": {"preset": null, "depth": 4, "branch_layers": 2, "embed_dim": 8, "num_heads": 2,
"num_classes": 10, "vocab_size": 16, "latent_channels": 8, "patch_nums": [1, 2], "shared_aln": false,
"attn_l2_norm": true, "has_mask_branch": true, "image_side_px": 32},
"sampling": {"cfg": 1.5, "top_k": 9, "top_p": 0.96, "mask_schedule": [[1], [1, 3]]},
"graphs": {"decode": {"file": "graphs/decode.onnx", "sha256": "00", "nbytes": 5, "kind": "decode",
"scale_idx": null, "step_idx": null, "inputs": [{"name": "f_hat", "dtype": "float32", "shape": ["B", 8, 2, 2]}],
"outputs": [{"name": "image", "dtype": "float32", "shape": ["B", 3, 32, 32]}]}},
"weights": {"file": "graphs/weights.bin", "sha256": "00", "nbytes": 64},
"tensors": {"w": {"dtype": "float16", "shape": [4, 8], "offset": 0}},
"plugins": [{"domain": "hmar", "name": "BlockSparseAttention", "version": "1"}], "sources": [],
"certificate": null, "class_names": null})";
    if (!change.empty()) json.replace(json.find(change), change.size(), to);
    return json;
}

void test_manifest() {
    const Manifest read = parse_manifest(manifest(), "m");
    CHECK(read.graph("decode").inputs[0].shape == (std::vector<int64_t>{-1, 8, 2, 2}));
    CHECK(read.hmar().num_tokens() == 5 && read.hmar().first(1) == 1 && read.tensors.at("w").nbytes() == 64);
    CHECK_THROWS(read.graph("ns", 1), Error, "no 'ns' graph for scale 1");
    const struct {
        const char *change, *to, *message;
    } cases[] = {
        {"{", "", "m: not JSON"},
        {"\"format_version\": 1", "\"format_version\": 2", "format version 2"},
        {"\"family\": \"hmar\"", "\"family\": \"himar\"", "family is 'himar'"},
        {"\"opset\": 20, ", "", "missing field 'opset'"},
        {"\"opset\": 20", "\"opset\": 20, \"x\": 1", "unknown field 'x'"},
        {"\"vocab_size\": 16", "\"vocab_size\": 0", "vocab_size must be an integer in 1.."},
        {"\"vocab_size\": 16", "\"vocab_size\": 18446744073709551615", "vocab_size must be"},
        {"\"vocab_size\": 16", "\"vocab_size\": 1.5", "vocab_size must be"},
        {"[1, 2]", "[1]", "patch_nums must be 2.."},
        {"[1, 2]", "[1, 4000000000]", "patch_nums must be"},
        {"[[1], [1, 3]]", "[[1]]", "has 1 entries"},
        {"graphs/decode.onnx", "../decode.onnx", "leaves the bundle"},
        {"graphs/decode.onnx", "/decode.onnx", "leaves the bundle"},
        {"graphs/decode.onnx", "graphs\\\\decode.onnx", "leaves the bundle"},
        {"graphs/decode.onnx", "a\\u0000b", "leaves the bundle"},
        {"graphs/decode.onnx", ".", "leaves the bundle"},
        {"\"kind\": \"decode\"", "\"kind\": \"paint\"", "unknown kind 'paint'"},
        {"\"dtype\": \"float16\"", "\"dtype\": \"int4\"", "dtype must be one of"},
        {"[4, 8]", "[4, 9]", "outside the weights file"},
        {"[4, 8]", "[4611686018427387904, 4]", "shape must be"},
        {"[4, 8]", "[200000000000000, 200000000000000]", "outside the weights file"},
        {"\"offset\": 0", "\"offset\": -1", "offset must be"},
        {"\"sources\": []", "\"sources\": {}", "sources must be a list"},
    };
    for (const auto& [change, to, message] : cases)
        CHECK_THROWS(parse_manifest(manifest(change, to), "m"), Error, message);
    CHECK_THROWS(parse_manifest(std::string(1 << 20, '['), "m"), Error, "m: nested too deeply");
    CHECK(parse_class_names("[\"cat\", \"dog\"]", "c", 2)[1] == "dog");
    CHECK_THROWS(parse_class_names("[\"cat\", \"cat\"]", "c", 2), Error, "expected 2 different names");
    CHECK_THROWS(parse_class_names("[1, 2]", "c", 2), Error, "expected a JSON list");
    CHECK_THROWS(parse_class_names("3", "c", 2), Error, "expected a JSON list");
}

}  // namespace

int main() {
    test_philox();
    test_sha256(false);
    if (has_sha_instructions()) test_sha256(true);
    test_schedule();
    test_given_draws();
    test_sampler();
    test_pixels();
    test_handles();
    test_manifest();
    return checked();
}
