// A stand-in for libhmar_plugins.so: tables that a test gives, and modules as fake_cuda.cpp reads them.
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "fake_cuda.h"

namespace {

struct Part {
    std::string table, image;
};

auto& parts = *new std::map<std::string, Part>;

}  // namespace

#define TEST_API extern "C" __attribute__((visibility("default")))

TEST_API void fake_plugins_set(const char* part, const char* table) {
    std::string image;
    const auto tables = nlohmann::ordered_json::parse(table);
    for (const auto& [arch, kernels] : tables.items()) {
        for (const auto& [name, entry] : kernels.items()) {
            image += name + " ";
            for (const auto& [parameter, kind] : entry.at("parameters").items()) {
                image += kind == "pointer" ? 'p' : kind == "i32" ? 'i' : 'f';
            }
            image += "\n";
        }
    }
    parts[part] = {table, image};
}

#define PART(name)                                                                        \
    TEST_API const char* hmar_##name##_table(void) { return parts[#name].table.c_str(); } \
    TEST_API const void* hmar_##name##_image(void) { return parts[#name].image.c_str(); }

PART(sampling)
PART(decoder)
PART(transformer)
PART(glue)
