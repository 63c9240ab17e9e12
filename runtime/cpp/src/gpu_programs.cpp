#include "gpu_programs.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "launch_arguments.h"

namespace hmar::core {
namespace {

// whole generations, as in runtime/backends/generation.py; steps for several batches, as in
// runtime/backends/captured_runs.py
constexpr size_t kMaxGenerations = 8, kMaxStepGraphs = 256;
constexpr size_t kAlignment = 256;

size_t align(size_t nbytes) { return (nbytes + kAlignment - 1) / kAlignment * kAlignment; }

bool is_generation(const RecordingEntry& entry) { return std::holds_alternative<GenerationPlan>(entry.plan); }

}  // namespace

// A recording with the memory that only it reads, and its CUDA graph once it has run.
struct GpuPrograms::Captured {
    Captured(const CudaDevice& device, const RecordingEntry& entry, Recording recorded)
        : device(device),
          entry(entry),
          recording(std::move(recorded)),
          constants(device, recording.constants.nbytes) {}
    ~Captured() {
        if (graph != nullptr) device.api().cuGraphExecDestroy(graph);
    }
    Captured(const Captured&) = delete;
    Captured& operator=(const Captured&) = delete;

    CuPointer address(int buffer, uint64_t offset) const { return bases[size_t(buffer)] + offset; }
    CuPointer address(const BufferPlace& place) const { return address(place.buffer, place.offset); }

    const CudaDevice& device;
    const RecordingEntry& entry;
    Recording recording;  // without its operations, once they are captured
    const DeviceMemory constants;
    std::vector<CuPointer> bases;  // of the buffers
    CuGraphExec graph = nullptr;
};

namespace {

void launch_kernel(const CudaDevice& device, const Kernel& kernel, const std::string& name,
                   const std::array<unsigned, 3>& grid, void** arguments) {
    CuLaunchAttribute overlap{kCuProgrammaticSerialization, {}, {}};
    overlap.value.allowed = 1;
    const CuLaunchConfig config{grid[0],
                                grid[1],
                                grid[2],
                                kernel.entry->threads,
                                1,
                                1,
                                unsigned(kernel.entry->shared_bytes),
                                device.stream(),
                                kernel.entry->overlaps ? &overlap : nullptr,
                                kernel.entry->overlaps ? 1u : 0u};
    device.check(device.api().cuLaunchKernelEx(&config, kernel.function, arguments, nullptr),
                 text("kernel ", name));
}

}  // namespace

GpuPrograms::GpuPrograms(const std::shared_ptr<const Bundle>& bundle, const GpuOptions& options)
    : tables_(options.plugins),
      recordings_(bundle, tables_, device_.gpu()),
      weights_file_(bundle->path(bundle->manifest().weights)),
      name_(text("gpu (", device_.name(), ", ", device_.gpu(), ")")) {
    try {
        const CudaDevice::Current current(device_);
        kernels_ = std::make_unique<KernelLibrary>(tables_, device_);
        if (recordings_.index().engines) {
            engines_ =
                load_engines(*recordings_.index().engines, recordings_.engines_folder(),
                             {options.tensorrt, tables_.path(), bundle->check() == HMAR_CHECK_ALL}, device_);
        }
        load_weights();
    } catch (...) {
        release();
        throw;
    }
}

GpuPrograms::~GpuPrograms() { release(); }

void GpuPrograms::release() {
    std::unique_ptr<CudaDevice::Current> current;
    try {
        current = std::make_unique<CudaDevice::Current>(device_);
    } catch (const std::exception&) {
        // the context is broken, and so is all that is freed below
    }
    captured_.clear();
    engines_.reset();
    staging_.reset();
    scratch_.reset();
    weights_.clear();
    kernels_.reset();
}

void GpuPrograms::load_weights() {
    const MappedFile data(recordings_.data_path());
    for (const BufferContents& contents : recordings_.index().weights) {
        weights_.push_back(std::make_unique<DeviceMemory>(device_, contents.nbytes));
        fill(*weights_.back(), contents, data);
    }
    device_.wait();
}

void GpuPrograms::fill(const DeviceMemory& memory, const BufferContents& contents,
                       const MappedFile& data) const {
    for (const auto& [at, nbytes] : contents.zeros) {
        if (nbytes > 0) device_.zero(memory.address() + at, nbytes);
    }
    for (const RecordedPiece& piece : contents.pieces) {
        const MappedFile& file = piece.is_of_weights ? weights_file_ : data;
        if (piece.offset + piece.nbytes > file.nbytes()) {
            throw Error(HMAR_CHECKSUM_MISMATCH,
                        "a file of the bundle has been cut short since it was opened");
        }
        if (piece.nbytes > 0)
            device_.copy_in(memory.address() + piece.at, file.data() + piece.offset, piece.nbytes);
    }
}

void GpuPrograms::run(const RecordingEntry& entry, const std::vector<ProgramInput>& inputs,
                      const std::vector<ProgramOutput>& outputs) {
    const std::lock_guard<std::mutex> turn(turn_);
    const CudaDevice::Current current(device_);
    reserve_staging(inputs, outputs);
    try {
        Captured& captured = find(entry);
        if (captured.graph == nullptr) {
            write(captured, inputs);
            capture(captured);
        }
        write(captured, inputs);
        device_.check(device_.api().cuGraphLaunch(captured.graph, device_.stream()), "launch");
        read(captured, inputs, outputs);
    } catch (...) {
        device_.api().cuStreamSynchronize(device_.stream());  // nothing reads the staging memory any more
        throw;
    }
}

GpuPrograms::Captured& GpuPrograms::find(const RecordingEntry& entry) {
    const auto found = std::find_if(captured_.begin(), captured_.end(),
                                    [&](const auto& captured) { return &captured->entry == &entry; });
    if (found != captured_.end()) {
        captured_.splice(captured_.begin(), captured_, found);
    } else {
        make_room(entry);
        captured_.push_front(load(entry));
    }
    return *captured_.front();
}

// Of whole generations and of steps, the least recently used goes when there are too many.
void GpuPrograms::make_room(const RecordingEntry& entry) {
    const auto is_alike = [&](const auto& captured) {
        return is_generation(captured->entry) == is_generation(entry);
    };
    const size_t most = is_generation(entry) ? kMaxGenerations : kMaxStepGraphs;
    if (size_t(std::count_if(captured_.begin(), captured_.end(), is_alike)) < most) return;
    captured_.erase(std::prev(std::find_if(captured_.rbegin(), captured_.rend(), is_alike).base()));
}

std::unique_ptr<GpuPrograms::Captured> GpuPrograms::load(const RecordingEntry& entry) {
    reserve_scratch(entry);
    auto captured = std::make_unique<Captured>(device_, entry, recordings_.load(entry));
    captured->bases = {scratch_->address(), captured->constants.address()};
    for (const auto& memory : weights_) captured->bases.push_back(memory->address());
    const MappedFile data(recordings_.data_path());
    fill(captured->constants, captured->recording.constants, data);
    device_.wait();
    return captured;
}

// For all recordings of up to so many images at once, so that those of one generation fit together.
void GpuPrograms::reserve_scratch(const RecordingEntry& entry) {
    uint64_t nbytes = 0;
    for (const RecordingEntry& other : recordings()) {
        if (batch_of(other.plan) <= batch_of(entry.plan)) nbytes = std::max(nbytes, other.scratch_nbytes);
    }
    if (scratch_ != nullptr && scratch_->nbytes() >= nbytes) return;
    captured_.clear();  // their addresses are those of the smaller memory
    scratch_.reset();
    scratch_ = std::make_unique<DeviceMemory>(device_, nbytes);
}

void GpuPrograms::reserve_staging(const std::vector<ProgramInput>& inputs,
                                  const std::vector<ProgramOutput>& outputs) {
    size_t nbytes = 0;
    for (const ProgramInput& input : inputs) nbytes += align(input.nbytes);
    for (const ProgramOutput& output : outputs) nbytes += align(output.nbytes);
    if (staging_ != nullptr && staging_->nbytes() >= nbytes) return;
    staging_.reset();
    staging_ = std::make_unique<PinnedMemory>(device_, nbytes);
}

// Puts all operations onto the stream; `kernels` are those of the recording.
void GpuPrograms::enqueue(const Captured& captured, const std::vector<const Kernel*>& kernels) {
    const Recording& recording = captured.recording;
    const auto address = [&](const BufferPointer& p) { return captured.address(p.buffer, p.offset); };
    const auto place = [&](const BufferPlace& p) { return captured.address(p); };
    for (const RecordedOperation& operation : recording.operations) {
        if (const auto* copy = std::get_if<RecordedCopy>(&operation)) {
            device_.copy(address(copy->target), address(copy->source), copy->nbytes);
        } else if (const auto* zero = std::get_if<RecordedZero>(&operation)) {
            device_.zero(place(zero->place), zero->place.nbytes);
        } else if (const auto* run = std::get_if<RecordedRun>(&operation)) {
            engines_->run(*run, place);
        } else {
            const auto& launched = std::get<RecordedLaunch>(operation);
            const Kernel& kernel = *kernels[size_t(launched.kernel)];
            const std::string& name = recording.kernels[size_t(launched.kernel)].second;
            launch_kernel(device_, kernel, name, launched.grid,
                          LaunchArguments(device_, launched, kernel, name, address).data());
        }
    }
}

// Makes the graph of a recording whose inputs are written.
void GpuPrograms::capture(Captured& captured) {
    const Recording& recording = captured.recording;
    std::vector<const Kernel*> kernels;
    for (const auto& [part, name] : recording.kernels) kernels.push_back(&kernels_->kernel(part, name));
    // engines make contexts and compile kernels when they first run, which a capture cannot
    if (recording.runs_engines()) enqueue(captured, kernels);
    device_.wait();
    const CudaApi& api = device_.api();
    CuGraph graph = nullptr;
    device_.check(api.cuStreamBeginCapture_v2(device_.stream(), kCuCaptureThreadLocal), "capture");
    try {
        enqueue(captured, kernels);
    } catch (...) {
        // ends the capture; what was captured is of no use
        if (api.cuStreamEndCapture(device_.stream(), &graph) == kCuSuccess) api.cuGraphDestroy(graph);
        throw;
    }
    device_.check(api.cuStreamEndCapture(device_.stream(), &graph), "capture");
    const CuResult made = api.cuGraphInstantiateWithFlags(&captured.graph, graph, 0);
    api.cuGraphDestroy(graph);
    device_.check(made, "graph");
    captured.recording.operations.clear();
    captured.recording.operations.shrink_to_fit();
}

void GpuPrograms::write(const Captured& captured, const std::vector<ProgramInput>& inputs) {
    std::byte* end = staging_->data();
    for (const ProgramInput& input : inputs) {
        const BufferPlace& place = captured.recording.inputs.at(input.name);
        if (place.nbytes != input.nbytes) {
            throw Error(HMAR_INTERNAL, text("input ", input.name, " has ", input.nbytes,
                                            " bytes, its recording takes ", place.nbytes));
        }
        std::memcpy(end, input.values, input.nbytes);
        device_.copy_in(captured.address(place), end, input.nbytes);
        end += align(input.nbytes);
    }
}

void GpuPrograms::read(const Captured& captured, const std::vector<ProgramInput>& inputs,
                       const std::vector<ProgramOutput>& outputs) {
    std::byte* begin = staging_->data();
    for (const ProgramInput& input : inputs) begin += align(input.nbytes);
    std::byte* end = begin;
    for (const ProgramOutput& output : outputs) {
        device_.copy_out(end, captured.address(captured.recording.outputs.at(output.name)), output.nbytes);
        end += align(output.nbytes);
    }
    device_.wait();
    for (const ProgramOutput& output : outputs) {
        std::memcpy(output.into, begin, output.nbytes);
        begin += align(output.nbytes);
    }
}

}  // namespace hmar::core
