// Kernels of the plugin library that this library launches itself, as runtime/backends/kernel_library.py
// does.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cuda_device.h"

namespace hmar::core {

enum class ParameterKind { pointer, i32, fp32, tensor_map };

// How the copy engine reads a contiguous float16 array.
struct TensorMapRule {
    struct Size {
        uint64_t times;
        int parameter;  // that it is a multiple of, by its place; -1 = none
    };
    std::vector<Size> sizes;    // innermost first
    std::vector<unsigned> box;  // of one copy, in values
};

// How a kernel is launched.
struct KernelEntry {
    unsigned threads;
    int shared_bytes;
    bool overlaps;  // may begin before the kernel before it ends
    std::vector<ParameterKind> parameters;
    std::map<size_t, TensorMapRule> tensor_maps;  // by place of the parameter
};

// The tables of libhmar_plugins.so for one GPU; needs no device.
class KernelTables {
  public:
    using Part = std::map<std::string, KernelEntry>;

    // `path` may be "", which is the first that the dynamic linker finds. Throws Error where it cannot be
    // loaded.
    explicit KernelTables(const std::string& path);

    const std::string& path() const { return path_; }

    // SHA-256 of the text of a part's table; "" where the library has no such part.
    std::string digest(const std::string& part) const;

    // Kernels of a part for a GPU, as "sm90". Throws Error where there are none.
    Part read(const std::string& part, const std::string& gpu) const;

    // What cuModuleLoadData takes.
    const void* image(const std::string& part) const;

  private:
    const char* table(const std::string& part) const;

    std::string path_;
    void* library_;
};

// A kernel on a device.
struct Kernel {
    const KernelEntry* entry;
    CuFunction function;
};

// Modules of a device, loaded when a kernel of theirs is first asked for. The device's context must be
// current for every function, and when this is destroyed.
class KernelLibrary {
  public:
    // Refers to both.
    KernelLibrary(const KernelTables& tables, const CudaDevice& device) : tables_(tables), device_(device) {}
    ~KernelLibrary();
    KernelLibrary(const KernelLibrary&) = delete;
    KernelLibrary& operator=(const KernelLibrary&) = delete;

    // Lives as long as this. Throws Error where the library has no such kernel, or CUDA fails.
    const Kernel& kernel(const std::string& part, const std::string& name);

  private:
    struct Module {
        CuModule handle = nullptr;
        KernelTables::Part entries;
        std::map<std::string, Kernel> kernels;
    };

    Module& module(const std::string& part);

    const KernelTables& tables_;
    const CudaDevice& device_;
    std::map<std::string, Module> modules_;
};

}  // namespace hmar::core
