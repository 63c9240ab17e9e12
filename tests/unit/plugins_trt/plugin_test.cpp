// The plugin library as TensorRT sees it: loaded by path, used through its interfaces. Needs no GPU.
//
//     plugin_test LIBRARY FAKE_NVINFER CASE
#include "plugin_harness.h"

namespace {

CASE(creator_has_the_contracts_names) {
    CHECK(std::string(creator().getPluginName()) == "BlockSparseAttention");
    CHECK(std::string(creator().getPluginVersion()) == "1");
    CHECK(std::string(creator().getPluginNamespace()) == "hmar");
    const PluginFieldCollection* fields = creator().getFieldNames();
    CHECK(fields->nbFields == 3);
    CHECK(std::string(fields->fields[0].name) == "sm_scale");
    CHECK(fields->fields[0].type == PluginFieldType::kFLOAT32);
    CHECK(std::string(fields->fields[1].name) == "pattern");
    CHECK(fields->fields[1].type == PluginFieldType::kCHAR);
    CHECK(std::string(fields->fields[2].name) == "qk_l2_norm");
    CHECK(fields->fields[2].type == PluginFieldType::kINT32);
}

CASE(plugin_has_three_capabilities) {
    const Plugin plugin = create({kSmScale});
    auto* core = static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    CHECK(std::string(core->getPluginName()) == "BlockSparseAttention");
    CHECK(std::string(core->getPluginVersion()) == "1");
    CHECK(std::string(core->getPluginNamespace()) == "hmar");
    CHECK(std::string(core->getInterfaceInfo().kind) == "PLUGIN_V3ONE_CORE");
    CHECK(std::string(build_of(*plugin).getInterfaceInfo().kind) == "PLUGIN_V3ONE_BUILD");
    CHECK(build_of(*plugin).getInterfaceInfo().major == 2);
    CHECK(build_of(*plugin).getNbOutputs() == 1);
    CHECK(std::string(runtime_of(*plugin).getInterfaceInfo().kind) == "PLUGIN_V3ONE_RUNTIME");
}

CASE(wrong_attributes_are_refused_with_a_message) {
    const float negative = -1.0f, not_a_number = std::nanf("");
    const int32_t two = 2;
    CHECK(!create({}) && has_logged("hmar::BlockSparseAttention: attribute sm_scale is missing"));
    CHECK(!create({PluginField("sm_scale", &negative, PluginFieldType::kFLOAT32, 1)}));
    CHECK(has_logged("sm_scale must be positive and finite, got -1.0"));
    CHECK(!create({PluginField("sm_scale", &not_a_number, PluginFieldType::kFLOAT32, 1)}));
    CHECK(!create({PluginField("sm_scale", &two, PluginFieldType::kINT32, 1)}));
    CHECK(has_logged("sm_scale must be one float"));
    CHECK(!create({kSmScale, pattern("causal")}));
    CHECK(has_logged("pattern must be block_diagonal or block_causal, got \"causal\""));
    CHECK(!create({kSmScale, pattern("")}));
    CHECK(!create({kSmScale, PluginField("pattern", &two, PluginFieldType::kINT32, 1)}));
    CHECK(has_logged("pattern must be a string"));
    CHECK(!create({kSmScale, qk_l2_norm(two)}) && has_logged("qk_l2_norm must be 0 or 1, got 2"));
    CHECK(!create({kSmScale, PluginField("qk_l2_norm", &kScale, PluginFieldType::kFLOAT32, 1)}));
    CHECK(has_logged("qk_l2_norm must be one integer"));
    CHECK(!create({kSmScale, PluginField("scale", &kScale, PluginFieldType::kFLOAT32, 1)}));
    CHECK(has_logged("unknown attribute scale; known: sm_scale, pattern, qk_l2_norm"));
}

CASE(messages_go_to_stderr_without_a_logger) {
    set_logger(nullptr);
    char* text = nullptr;
    size_t size = 0;
    stderr = open_memstream(&text, &size);
    CHECK(!create({}));
    std::fclose(stderr);
    logged.assign(text, size);
    CHECK(logged == "hmar::BlockSparseAttention: attribute sm_scale is missing\n");
}

CASE(attributes_come_in_several_types) {
    const double scale = 0.125;
    const int64_t norm = 1;
    CHECK(create({PluginField("sm_scale", &scale, PluginFieldType::kFLOAT64, 1)}));
    CHECK(create({kSmScale, PluginField("qk_l2_norm", &norm, PluginFieldType::kINT64, 1)}));
    CHECK(create({kSmScale, pattern("block_causal")}));
    CHECK(create({kSmScale, pattern("block_causal", sizeof("block_causal"))}));  // with its zero
    CHECK(create({kSmScale, PluginField("plugin_version", "1", PluginFieldType::kCHAR, 1)}));
    CHECK(create({kSmScale, PluginField("plugin_namespace", "hmar", PluginFieldType::kCHAR, 4)}));
    CHECK(logged.empty());
}

CASE(attributes_survive_serialisation) {
    for (const char* name : {"block_diagonal", "block_causal"}) {
        for (const int32_t& norm : {kFalse, kTrue}) {
            Plugin plugin = create({kSmScale, pattern(name), qk_l2_norm(norm)});
            Plugin attached;
            for (int round = 0; round < 2; ++round) {
                const PluginFieldCollection* stored = runtime_of(*plugin).getFieldsToSerialize();
                CHECK(stored->nbFields == 3);
                const std::vector<PluginField> fields(stored->fields, stored->fields + stored->nbFields);
                CHECK(*static_cast<const float*>(fields[0].data) == kScale);
                CHECK(std::string(static_cast<const char*>(fields[1].data), fields[1].length) == name);
                CHECK(*static_cast<const int32_t*>(fields[2].data) == norm);
                Plugin read = create(fields, TensorRTPhase::kRUNTIME);
                plugin.reset(read->clone());
                attached.reset(runtime_of(*plugin).attachToContext(nullptr));
                plugin.swap(attached);
            }
        }
    }
}

CASE(output_shape_of_packed_input) {
    const Plugin plain = create({kSmScale});
    const Plugin normed = create({kSmScale, qk_l2_norm(kTrue)});
    using Shape = std::vector<int64_t>;
    CHECK((output_shape(*plain, {{2, 30, 3, 4, 64}, {5}}) == Shape{2, 30, 256}));
    CHECK((output_shape(*plain, {{-1, -1, 3, 4, 80}, {-1}}) == Shape{-1, -1, 320}));
    CHECK((output_shape(*plain, {{-1, -1, 3, -1, -1}, {-1}}) == Shape{-1, -1, -1}));
    CHECK((output_shape(*normed, {{-1, 9, 3, 16, 128}, {2}, {16}}) == Shape{-1, 9, 2048}));
}

CASE(output_shape_of_separate_inputs) {
    const Plugin plain = create({kSmScale});
    const Plugin normed = create({kSmScale, qk_l2_norm(kTrue)});
    using Shape = std::vector<int64_t>;
    const Shape qkv = {-1, 30, 4, 64};
    CHECK((output_shape(*plain, {qkv, qkv, qkv, {5}}) == Shape{-1, 30, 256}));
    CHECK((output_shape(*normed, {qkv, qkv, qkv, {5}, {4}}) == Shape{-1, 30, 256}));
    CHECK((output_shape(*plain, {qkv, {-1, -1, 4, 64}, qkv, {-1}}) == Shape{-1, 30, 256}));
    CHECK(output_shape(*plain, {qkv, {-1, 31, 4, 64}, qkv, {5}}).empty());
    CHECK(has_logged("q, k and v must be (B, T, H, d) and alike, got (?, 30, 4, 64), (?, 31, 4, 64)"));
    CHECK(output_shape(*plain, {{30, 4, 64}, qkv, qkv, {5}}).empty());
}

CASE(wrong_shapes_are_refused_with_a_message) {
    const Plugin plain = create({kSmScale});
    const Plugin normed = create({kSmScale, qk_l2_norm(kTrue)});
    CHECK(output_shape(*plain, {{-1, 30, 4, 64}, {5}}).empty());
    CHECK(has_logged("qkv must be (B, T, 3, H, d), got (?, 30, 4, 64)"));
    CHECK(output_shape(*plain, {{2, 30, 2, 4, 64}, {5}}).empty());
    CHECK(output_shape(*plain, {{2, 30, 3, 4, 72}, {5}}).empty());
    CHECK(has_logged("no kernel for head dim 72; supported: 64, 80, 128"));
    CHECK(output_shape(*plain, {{2, 30, 3, 4, 64}, {1}}).empty());
    CHECK(has_logged("cu_seqlens must be (S + 1,) with at least one block, got (1)"));
    CHECK(output_shape(*plain, {{2, 30, 3, 4, 64}, {5, 1}}).empty());
    CHECK(output_shape(*plain, {{2, 30, 3, 4, 64}, {5}, {4}}).empty());
    CHECK(has_logged(
        "with qk_l2_norm=0 the inputs are (qkv, cu_seqlens) or (q, k, v, cu_seqlens), got 3 inputs"));
    CHECK(output_shape(*normed, {{2, 30, 3, 4, 64}, {5}}).empty());
    CHECK(has_logged("with qk_l2_norm=1 the inputs are (qkv, cu_seqlens, scale_mul) or"));
    CHECK(output_shape(*normed, {{2, 30, 3, 4, 64}, {5}, {3}}).empty());
    CHECK(has_logged("scale_mul must be (H,) for 4 heads, got (3)"));
}

CASE(shapes_are_checked_again_at_run_time) {
    const Plugin plugin = create({kSmScale});
    std::vector<PluginTensorDesc> tensors = {desc({2, 30, 3, 4, 64}, DataType::kHALF),
                                             desc({5}, DataType::kINT32)};
    CHECK(runtime_of(*plugin).onShapeChange(tensors.data(), 2, nullptr, 1) == 0);
    tensors[0] = desc({2, 30, 3, 4, 96}, DataType::kHALF);
    CHECK(runtime_of(*plugin).onShapeChange(tensors.data(), 2, nullptr, 1) != 0);
    CHECK(has_logged("no kernel for head dim 96"));
    std::vector<DynamicPluginTensorDesc> dynamic(2);
    dynamic[0].desc = desc({-1, -1, 3, 4, 64}, DataType::kHALF);
    dynamic[1].desc = desc({-1}, DataType::kINT32);
    CHECK(build_of(*plugin).configurePlugin(dynamic.data(), 2, nullptr, 1) == 0);
    dynamic[0].desc.dims.d[4] = 96;
    CHECK(build_of(*plugin).configurePlugin(dynamic.data(), 2, nullptr, 1) != 0);
}

CASE(workspace_is_for_the_largest_shape) {
    std::vector<DynamicPluginTensorDesc> tensors(3);
    tensors[0].desc = desc({-1, -1, 3, 4, 64}, DataType::kHALF);
    tensors[0].max = desc({6, 30, 3, 4, 64}, DataType::kHALF).dims;
    const auto bytes = [&](IPluginV3& plugin) {
        return build_of(plugin).getWorkspaceSize(tensors.data(), 3, nullptr, 1);
    };
    CHECK(bytes(*create({kSmScale})) == 0);
    CHECK(bytes(*create({kSmScale, qk_l2_norm(kTrue)})) == 6 * 30 * 4 * 64 * sizeof(uint16_t));
    tensors[0].max = desc({6, 30, 4, 64}, DataType::kHALF).dims;
    CHECK(bytes(*create({kSmScale, qk_l2_norm(kTrue)})) == 6 * 30 * 4 * 64 * sizeof(uint16_t));
}

CASE(formats_of_packed_input) {
    const Plugin plugin = create({kSmScale, qk_l2_norm(kTrue)});
    for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
        CHECK(takes(*plugin, {type}, 3));
        CHECK(!takes(*plugin, {type}, 3, TensorFormat::kCHW32));
        CHECK(takes(*plugin, {type, DataType::kINT32}, 3));
        CHECK(!takes(*plugin, {type, DataType::kINT64}, 3));
        CHECK(takes(*plugin, {type, DataType::kINT32, DataType::kFLOAT}, 3));
        CHECK(!takes(*plugin, {type, DataType::kINT32, DataType::kHALF}, 3));
        CHECK(takes(*plugin, {type, DataType::kINT32, DataType::kFLOAT, type}, 3));
    }
    CHECK(!takes(*plugin, {DataType::kINT8}, 3));
    CHECK(!takes(*plugin, {DataType::kHALF, DataType::kINT32, DataType::kFLOAT, DataType::kFLOAT}, 3));
}

CASE(formats_of_separate_inputs) {
    const Plugin plugin = create({kSmScale});
    CHECK(takes(*plugin, {DataType::kHALF, DataType::kHALF}, 4));
    CHECK(!takes(*plugin, {DataType::kHALF, DataType::kFLOAT}, 4));
    CHECK(takes(*plugin, {DataType::kBF16, DataType::kBF16, DataType::kBF16, DataType::kINT32}, 4));
    CHECK(!takes(*plugin, {DataType::kBF16, DataType::kBF16, DataType::kBF16, DataType::kFLOAT}, 4));
}

CASE(output_has_the_type_of_the_input) {
    const Plugin plugin = create({kSmScale, qk_l2_norm(kTrue)});
    DataType output = DataType::kINT8;
    const auto status = [&](const std::vector<DataType>& types) {
        logged.clear();
        return build_of(*plugin).getOutputDataTypes(&output, 1, types.data(),
                                                    static_cast<int32_t>(types.size()));
    };
    CHECK(status({DataType::kBF16, DataType::kINT32, DataType::kFLOAT}) == 0 && output == DataType::kBF16);
    CHECK(status({DataType::kINT8, DataType::kINT32, DataType::kFLOAT}) != 0);
    CHECK(has_logged("q, k and v must be float32, float16 or bfloat16, all of one type"));
    CHECK(status({DataType::kHALF, DataType::kINT64, DataType::kFLOAT}) != 0);
    CHECK(has_logged("cu_seqlens must be int32"));
    CHECK(status({DataType::kHALF, DataType::kINT32, DataType::kHALF}) != 0);
    CHECK(has_logged("scale_mul must be float32"));
}

CASE(launcher_says_what_is_wrong) {
    auto* check = symbol<const char*(const bsa_params*)>("bsa_check");
    auto* launch = symbol<cudaError_t(const bsa_params*, cudaStream_t)>("bsa_launch");
    alignas(16) static char memory[16];
    bsa_params good{};
    good.q = good.k = good.v = good.o = memory;
    good.cu_seqlens = reinterpret_cast<const int32_t*>(memory);
    good.batch = 2, good.length = 9, good.heads = 4, good.head_dim = 64, good.num_blocks = 3;
    good.stride_b = 9 * 256, good.stride_t = 256, good.stride_h = 64;
    good.sm_scale = 1.0f, good.dtype = BSA_FLOAT16;
    CHECK(check(&good) == nullptr);
    const auto says = [&](const char* text, const std::function<void(bsa_params&)>& change) {
        bsa_params bad = good;
        change(bad);
        const char* problem = check(&bad);
        logged = problem == nullptr ? "nothing" : problem;
        return has_logged(text) && launch(&bad, nullptr) == cudaErrorInvalidValue;
    };
    CHECK(says("head_dim must be one of 64, 80, 128", [](bsa_params& p) { p.head_dim = 96; }));
    CHECK(says("dtype", [](bsa_params& p) { p.dtype = static_cast<bsa_dtype>(3); }));
    CHECK(says("pattern", [](bsa_params& p) { p.pattern = static_cast<bsa_pattern>(2); }));
    CHECK(says("sm_scale", [](bsa_params& p) { p.sm_scale = 0.0f; }));
    CHECK(says("sm_scale", [](bsa_params& p) { p.sm_scale = INFINITY; }));
    CHECK(says("batch", [](bsa_params& p) { p.batch = 65536; }));
    CHECK(says("heads", [](bsa_params& p) { p.heads = 0; }));
    CHECK(says("length", [](bsa_params& p) { p.length = -1; }));
    CHECK(says("num_blocks", [](bsa_params& p) { p.num_blocks = 0; }));
    CHECK(says("null", [](bsa_params& p) { p.v = nullptr; }));
    CHECK(says("workspace", [](bsa_params& p) { p.scale_mul = reinterpret_cast<const float*>(memory); }));
    CHECK(says("aligned to 16 bytes", [](bsa_params& p) { p.k = memory + 8; }));
    CHECK(says("aligned to 16 bytes", [](bsa_params& p) { p.workspace = memory + 8; }));
    CHECK(says("multiples of 16 bytes", [](bsa_params& p) { p.stride_t = 252; }));
    CHECK(says("at most 2^23", [](bsa_params& p) { p.stride_t = int64_t{1} << 24; }));
    bsa_params empty = good;
    empty.length = 0;
    CHECK(launch(&empty, nullptr) == cudaSuccess);
    CHECK(std::string(symbol<const char*()>("bsa_version")()).find('.') != std::string::npos);
    CHECK(std::string(symbol<const char*()>("bsa_architectures")()).find("90") != std::string::npos);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4 || cases().count(argv[3]) == 0) {
        std::printf("usage: plugin_test LIBRARY FAKE_NVINFER CASE\n");
        return 2;
    }
    library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    fake_nvinfer = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr || fake_nvinfer == nullptr) {
        std::printf("%s\n", dlerror());
        return 2;
    }
    set_logger(&logger);
    symbol<void(ILoggerFinder*)>("setLoggerFinder")(nullptr);
    cases()[argv[3]]();
    return num_failures == 0 ? 0 : 1;
}
