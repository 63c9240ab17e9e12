#include "kernel_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "sha256.h"

namespace hmar::core {
namespace {

constexpr const char* kPlugins = "libhmar_plugins.so";
// as it is written: the order of a kernel's parameters counts
using Table = nlohmann::ordered_json;

// The architecture whose kernels run on a GPU: the same major version, and not a later one; "" = none.
std::string choose_architecture(const Table& tables, int gpu) {
    int best = 0;
    for (const auto& [name, table] : tables.items()) {
        const int arch = std::atoi(name.c_str());
        if (arch / 10 == gpu / 10 && arch <= gpu && arch > best) best = arch;
    }
    return best == 0 ? "" : std::to_string(best);
}

ParameterKind parameter_kind(const std::string& kind) {
    if (kind == "pointer") return ParameterKind::pointer;
    if (kind == "i32") return ParameterKind::i32;
    if (kind == "fp32") return ParameterKind::fp32;
    if (kind == "tensor_map") return ParameterKind::tensor_map;
    throw Error(HMAR_BACKEND_UNAVAILABLE, text("a parameter of kind '", kind, "'"));
}

constexpr size_t kMaxMapRank = 5;  // of a tensor map

// `kinds` are those of the kernel's parameters, `names` their names.
TensorMapRule read_tensor_map(const Table& data, const std::vector<std::string>& names,
                              const std::vector<ParameterKind>& kinds) {
    const auto fail = [](const std::string& what) {
        throw Error(HMAR_BACKEND_UNAVAILABLE, text("a tensor map ", what));
    };
    TensorMapRule rule;
    for (const Table& size : data.at("sizes")) {
        int place = -1;
        if (!size.at(1).is_null()) {
            const auto name = size.at(1).get<std::string>();
            place = int(std::find(names.begin(), names.end(), name) - names.begin());
            if (size_t(place) == names.size() || kinds[size_t(place)] != ParameterKind::i32) {
                fail(text("whose size is no whole number: ", name));
            }
        }
        rule.sizes.push_back({size.at(0).get<uint64_t>(), place});
    }
    rule.box = data.at("box").get<std::vector<unsigned>>();
    if (rule.sizes.empty() || rule.sizes.size() > kMaxMapRank || rule.box.size() != rule.sizes.size()) {
        fail(text("of ", rule.sizes.size(), " dimensions and a box of ", rule.box.size()));
    }
    if (rule.box[0] != 32 && rule.box[0] != 64) fail(text("with rows of ", rule.box[0], " values"));
    return rule;
}

KernelTables::Part read_part(const Table& table) {
    KernelTables::Part part;
    for (const auto& [name, data] : table.items()) {
        KernelEntry entry{data.at("threads").get<unsigned>(),
                          data.at("shared_bytes").get<int>(),
                          data.value("overlaps", false),
                          {},
                          {}};
        std::vector<std::string> names;
        for (const auto& [parameter, kind] : data.at("parameters").items()) {
            names.push_back(parameter);
            entry.parameters.push_back(parameter_kind(kind.get<std::string>()));
        }
        for (size_t i = 0; i < names.size(); ++i) {
            if (entry.parameters[i] != ParameterKind::tensor_map) continue;
            entry.tensor_maps.emplace(
                i, read_tensor_map(data.at("tensor_maps").at(names[i]), names, entry.parameters));
        }
        part.emplace(name, std::move(entry));
    }
    return part;
}

}  // namespace

KernelTables::KernelTables(const std::string& path) : path_(path.empty() ? kPlugins : path) {
    // never closed: it brings CUDA's runtime, which does not expect to be unloaded
    library_ = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr) {
        throw Error(HMAR_BACKEND_UNAVAILABLE, text("the kernels cannot be loaded (", dlerror(),
                                                   "); build the plugin library, and name its ", kPlugins,
                                                   " as the session's plugins"));
    }
}

const char* KernelTables::table(const std::string& part) const {
    using Get = const char* (*)();
    const auto get = reinterpret_cast<Get>(dlsym(library_, text("hmar_", part, "_table").c_str()));
    return get == nullptr ? nullptr : get();
}

std::string KernelTables::digest(const std::string& part) const {
    const char* json = table(part);
    if (json == nullptr) return "";
    Sha256 sha256;
    sha256.update(json, std::strlen(json));
    return sha256.hex();
}

KernelTables::Part KernelTables::read(const std::string& part, const std::string& gpu) const {
    const char* json = table(part);
    if (json == nullptr) throw Error(HMAR_BACKEND_UNAVAILABLE, text(path_, ": has no ", part, " kernels"));
    try {
        const Table tables = Table::parse(json);
        const std::string arch = choose_architecture(tables, std::atoi(gpu.c_str() + std::strlen("sm")));
        if (!arch.empty()) return read_part(tables.at(arch));
    } catch (const Table::exception& error) {
        throw Error(HMAR_BACKEND_UNAVAILABLE,
                    text(path_, ": a table of ", part, " kernels that this release does not read (",
                         error.what(), "); build it from the same release"));
    }
    throw Error(HMAR_BACKEND_UNAVAILABLE, text(path_, ": has no ", part, " kernels for ", gpu,
                                               "; build it for this GPU, if there are kernels for it"));
}

const void* KernelTables::image(const std::string& part) const {
    using Get = const void* (*)();
    const auto get = reinterpret_cast<Get>(dlsym(library_, text("hmar_", part, "_image").c_str()));
    if (get == nullptr) throw Error(HMAR_BACKEND_UNAVAILABLE, text(path_, ": has no ", part, " kernels"));
    return get();
}

KernelLibrary::~KernelLibrary() {
    for (const auto& [part, module] : modules_) {
        if (module.handle != nullptr) device_.api().cuModuleUnload(module.handle);
    }
}

KernelLibrary::Module& KernelLibrary::module(const std::string& part) {
    Module& module = modules_[part];
    if (module.handle != nullptr) return module;
    module.entries = tables_.read(part, device_.gpu());
    device_.check(device_.api().cuModuleLoadData(&module.handle, tables_.image(part)),
                  text("kernels of ", part));
    return module;
}

const Kernel& KernelLibrary::kernel(const std::string& part, const std::string& name) {
    Module& module = this->module(part);
    const auto found = module.kernels.find(name);
    if (found != module.kernels.end()) return found->second;
    const auto entry = module.entries.find(name);
    if (entry == module.entries.end()) {
        throw Error(HMAR_BACKEND_UNAVAILABLE, text(tables_.path(), ": has no ", part, " kernel ", name));
    }
    Kernel kernel{&entry->second, nullptr};
    const std::string what = text("kernel ", name);
    device_.check(device_.api().cuModuleGetFunction(&kernel.function, module.handle, name.c_str()), what);
    // more than 48 KiB must be asked for
    device_.check(
        device_.api().cuFuncSetAttribute(kernel.function, kCuMaxDynamicShared, entry->second.shared_bytes),
        what);
    return module.kernels.emplace(name, kernel).first->second;
}

}  // namespace hmar::core
