// A stand-in for libhmar_plugins.so: tables that a test gives, else those of the folder HMAR_TEST_RECORDED,
// and modules as fake_cuda.cpp reads them.
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "fake_cuda.h"

namespace {

struct Part {
    std::string table, image;
};

auto& parts = *new std::map<std::string, Part>;

const Part& part(const char* name) {
    const char* folder = std::getenv("HMAR_TEST_RECORDED");
    if (parts.count(name) == 0 && folder != nullptr) {
        std::ifstream file(std::string(folder) + "/tables/" + name + ".json");
        fake_plugins_set(name, std::string(std::istreambuf_iterator<char>(file), {}).c_str());
    }
    return parts[name];
}

}  // namespace

#define TEST_API extern "C" __attribute__((visibility("default")))

TEST_API void fake_plugins_set(const char* part, const char* table) {
    std::string image;
    const auto tables = nlohmann::ordered_json::parse(table);
    for (const auto& [arch, kernels] : tables.items()) {
        for (const auto& [name, entry] : kernels.items()) {
            image += name + " ";
            for (const auto& [parameter, kind] : entry.at("parameters").items()) {
                image += kind == "pointer" ? 'p' : kind == "tensor_map" ? 't' : kind == "i32" ? 'i' : 'f';
            }
            image += "\n";
        }
    }
    parts[part] = {table, image};
}

#define PART(name)                                                                       \
    TEST_API const char* hmar_##name##_table(void) { return part(#name).table.c_str(); } \
    TEST_API const void* hmar_##name##_image(void) { return part(#name).image.c_str(); }

PART(sampling)
PART(decoder)
PART(transformer)
PART(glue)
