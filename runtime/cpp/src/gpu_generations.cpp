#include "gpu_generations.h"

#include <algorithm>
#include <cstring>

namespace hmar::core {
namespace {

constexpr size_t kMaxGraphs = 8;  // as in runtime/backends/generation.py
constexpr size_t kAlignment = 256;

size_t align(size_t nbytes) { return (nbytes + kAlignment - 1) / kAlignment * kAlignment; }

// Offsets of inputs in the staging memory, and where outputs begin.
struct InputLayout {
    explicit InputLayout(size_t batch)
        : images(settings + 3 * sizeof(double)),
          labels(images + batch * sizeof(uint64_t)),
          end(align(labels + 2 * batch * sizeof(int32_t))) {}

    const size_t seed = 0, settings = sizeof(uint64_t), images, labels, end;
};

}  // namespace

// A CUDA graph of a recording, with the memory that only it reads.
struct GpuGenerations::Captured {
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

    size_t batch() const { return size_t(entry.plan.batch); }
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

// What a launch passes: a slot of 8 bytes for each argument.
class LaunchArguments {
  public:
    // `address` gives that of a pointer.
    template <typename Address>
    LaunchArguments(const RecordedLaunch& launch, const Kernel& kernel, const std::string& name,
                    Address address)
        : slots_(launch.arguments.size()), pointers_(launch.arguments.size()) {
        const std::vector<ParameterKind>& kinds = kernel.entry->parameters;
        if (kinds.size() != launch.arguments.size()) {
            throw Error(HMAR_INVALID_BUNDLE, text("kernel ", name, " takes ", kinds.size(),
                                                  " arguments, its recording has ", launch.arguments.size()));
        }
        for (size_t i = 0; i < kinds.size(); ++i) {
            if (!store(launch.arguments[i], kinds[i], &slots_[i], address)) {
                throw Error(HMAR_INVALID_BUNDLE,
                            text("kernel ", name, ": argument ", i, " of its recording is of another kind"));
            }
            pointers_[i] = &slots_[i];
        }
    }

    void** data() { return pointers_.data(); }

  private:
    template <typename Address>
    static bool store(const LaunchArgument& argument, ParameterKind kind, uint64_t* slot, Address address) {
        if (kind == ParameterKind::pointer) {
            const auto* pointer = std::get_if<BufferPointer>(&argument);
            if (pointer == nullptr && !std::holds_alternative<NullPointer>(argument)) return false;
            *slot = pointer == nullptr ? 0 : address(*pointer);
            return true;
        }
        const auto* integer = std::get_if<int64_t>(&argument);
        if (kind == ParameterKind::i32) {
            if (integer == nullptr) return false;
            const auto value = int32_t(*integer);
            std::memcpy(slot, &value, sizeof value);
            return true;
        }
        const auto* real = std::get_if<double>(&argument);
        if (real == nullptr && integer == nullptr) return false;
        const auto value = real != nullptr ? float(*real) : float(*integer);
        std::memcpy(slot, &value, sizeof value);
        return true;
    }

    std::vector<uint64_t> slots_;
    std::vector<void*> pointers_;
};

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

std::unique_ptr<GpuGenerations> GpuGenerations::open(const std::shared_ptr<const Bundle>& bundle,
                                                     const std::string& plugins, size_t max_batch) {
    if (bundle->manifest().family != "hmar") {
        throw Error(HMAR_BACKEND_UNAVAILABLE, "recordings are of HMAR, this bundle is of Hi-MAR");
    }
    GpuRecordings::check_any(*bundle);
    return std::make_unique<GpuGenerations>(bundle, plugins, max_batch);
}

GpuGenerations::GpuGenerations(const std::shared_ptr<const Bundle>& bundle, const std::string& plugins,
                               size_t max_batch)
    : tables_(plugins),
      recordings_(bundle, tables_, device_.gpu()),
      max_batch_(max_batch),
      weights_file_(bundle->path(bundle->manifest().weights)),
      name_(text("gpu (", device_.name(), ", ", device_.gpu(), ")")) {
    try {
        const CudaDevice::Current current(device_);
        kernels_ = std::make_unique<KernelLibrary>(tables_, device_);
        load_weights();
    } catch (...) {
        release();
        throw;
    }
}

GpuGenerations::~GpuGenerations() { release(); }

void GpuGenerations::release() {
    std::unique_ptr<CudaDevice::Current> current;
    try {
        current = std::make_unique<CudaDevice::Current>(device_);
    } catch (const std::exception&) {
        // the context is broken, and so is all that is freed below
    }
    captured_.clear();
    staging_.reset();
    scratch_.reset();
    weights_.clear();
    kernels_.reset();
}

void GpuGenerations::load_weights() {
    const MappedFile data(recordings_.data_path());
    for (const BufferContents& contents : recordings_.index().weights) {
        weights_.push_back(std::make_unique<DeviceMemory>(device_, contents.nbytes));
        fill(*weights_.back(), contents, data);
    }
    device_.wait();
}

void GpuGenerations::fill(const DeviceMemory& memory, const BufferContents& contents,
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

std::vector<const RecordingEntry*> GpuGenerations::recordings(const HmarRequest& request) const {
    const ModelSpec& model = recordings_.bundle().manifest().hmar();
    return recordings_.find(planned_work(request.settings, model), max_batch_);
}

std::string GpuGenerations::refusal(const HmarRequest& request) const {
    if (request.on_scale) return "a generation at once calls nothing back after a scale";
    if (request.known.tokens != nullptr) return "a generation at once keeps no known tokens";
    if (request.settings.sees_prefix) return "there are no recordings with HMAR_CONTEXT_PREFIX";
    if (dynamic_cast<const SeededDraws*>(request.draws.get()) == nullptr) {
        return "a generation at once draws by its seed alone (HMAR_DRAWS_SEED)";
    }
    if (recordings(request).empty()) {
        return "no recording has this mask schedule and these guided passes (other cfg or "
               "skip_guidance_below "
               "may guide others); record it with scripts/build_engines.py --record-schedules";
    }
    return "";
}

void GpuGenerations::generate(const HmarRequest& request, const HmarOutput& output) {
    const std::vector<const RecordingEntry*> fitting = recordings(request);
    const size_t largest = std::min(max_batch_, size_t(fitting.back()->plan.batch));
    const size_t num_images = request.labels.size();
    const std::lock_guard<std::mutex> turn(turn_);
    const CudaDevice::Current current(device_);
    for (size_t first = 0; first < num_images; first += largest) {
        const Part part{first, std::min(largest, num_images - first)};
        check_cancelled(request.cancelled, part);
        const auto* entry = *std::find_if(fitting.begin(), fitting.end(), [&](const auto* entry) {
            return size_t(entry->plan.batch) >= part.count;
        });
        run_part(captured(*entry), request, output, part);
    }
}

GpuGenerations::Captured& GpuGenerations::captured(const RecordingEntry& entry) {
    const auto found = std::find_if(captured_.begin(), captured_.end(),
                                    [&](const auto& captured) { return &captured->entry == &entry; });
    if (found != captured_.end()) {
        captured_.splice(captured_.begin(), captured_, found);
    } else {
        while (captured_.size() >= kMaxGraphs) captured_.pop_back();
        captured_.push_front(capture(entry));
    }
    return *captured_.front();
}

void GpuGenerations::reserve_scratch(size_t nbytes) {
    if (scratch_ != nullptr && scratch_->nbytes() >= nbytes) return;
    captured_.clear();  // their addresses are those of the smaller memory
    scratch_.reset();
    scratch_ = std::make_unique<DeviceMemory>(device_, nbytes);
}

std::unique_ptr<GpuGenerations::Captured> GpuGenerations::capture(const RecordingEntry& entry) {
    reserve_scratch(entry.scratch_nbytes);
    auto captured = std::make_unique<Captured>(device_, entry, recordings_.load(entry));
    const Recording& recording = captured->recording;
    captured->bases = {scratch_->address(), captured->constants.address()};
    for (const auto& memory : weights_) captured->bases.push_back(memory->address());
    const MappedFile data(recordings_.data_path());
    fill(captured->constants, recording.constants, data);
    device_.wait();
    std::vector<const Kernel*> kernels;
    for (const auto& [part, name] : recording.kernels) kernels.push_back(&kernels_->kernel(part, name));

    const auto address = [&](const BufferPointer& p) { return captured->address(p.buffer, p.offset); };
    const auto enqueue = [&](const RecordedOperation& operation) {
        if (const auto* copy = std::get_if<RecordedCopy>(&operation)) {
            device_.copy(address(copy->target), address(copy->source), copy->nbytes);
        } else if (const auto* zero = std::get_if<RecordedZero>(&operation)) {
            device_.zero(captured->address(zero->place), zero->place.nbytes);
        } else {
            const auto& launched = std::get<RecordedLaunch>(operation);
            const Kernel& kernel = *kernels[size_t(launched.kernel)];
            const std::string& name = recording.kernels[size_t(launched.kernel)].second;
            launch_kernel(device_, kernel, name, launched.grid,
                          LaunchArguments(launched, kernel, name, address).data());
        }
    };
    const CudaApi& api = device_.api();
    CuGraph graph = nullptr;
    device_.check(api.cuStreamBeginCapture_v2(device_.stream(), kCuCaptureThreadLocal), "capture");
    try {
        for (const RecordedOperation& operation : recording.operations) enqueue(operation);
    } catch (...) {
        // ends the capture; what was captured is of no use
        if (api.cuStreamEndCapture(device_.stream(), &graph) == kCuSuccess) api.cuGraphDestroy(graph);
        throw;
    }
    device_.check(api.cuStreamEndCapture(device_.stream(), &graph), "capture");
    const CuResult made = api.cuGraphInstantiateWithFlags(&captured->graph, graph, 0);
    api.cuGraphDestroy(graph);
    device_.check(made, "graph");
    captured->recording.operations.clear();
    captured->recording.operations.shrink_to_fit();
    return captured;
}

void GpuGenerations::run_part(Captured& captured, const HmarRequest& request, const HmarOutput& output,
                              Part part) {
    const Recording& recording = captured.recording;
    size_t nbytes =
        InputLayout(captured.batch()).end + align(recording.pixels.nbytes) + align(recording.image.nbytes);
    for (const BufferPlace& place : recording.tokens) nbytes += align(place.nbytes);
    if (staging_ == nullptr || staging_->nbytes() < nbytes) {
        staging_.reset();
        staging_ = std::make_unique<PinnedMemory>(device_, nbytes);
    }
    try {
        write_inputs(captured, request, part);
        device_.check(device_.api().cuGraphLaunch(captured.graph, device_.stream()), "launch");
        read_outputs(captured, output, part);
    } catch (...) {
        device_.api().cuStreamSynchronize(device_.stream());  // nothing reads the staging memory any more
        throw;
    }
}

void GpuGenerations::write_inputs(const Captured& captured, const HmarRequest& request, Part part) {
    const ModelSpec& model = recordings_.bundle().manifest().hmar();
    const auto& draws = dynamic_cast<const SeededDraws&>(*request.draws);
    const size_t batch = captured.batch();
    const InputLayout layout(batch);
    // rows of padding, and the second half, are unconditional
    std::vector<int32_t> labels(2 * batch, model.num_classes);
    std::copy_n(request.labels.begin() + ptrdiff_t(part.first), part.count, labels.begin());
    std::vector<uint64_t> images(batch, 0);
    for (size_t i = 0; i < part.count; ++i) images[i] = draws.image_index(part.first + i);
    const uint64_t seed = draws.seed();
    const double settings[] = {request.settings.cfg, double(request.settings.top_k), request.settings.top_p};

    const auto write = [&](const BufferPlace& place, size_t offset, const void* values) {
        std::memcpy(staging_->data() + offset, values, place.nbytes);
        device_.copy_in(captured.address(place), staging_->data() + offset, place.nbytes);
    };
    write(captured.recording.seed, layout.seed, &seed);
    write(captured.recording.settings, layout.settings, settings);
    write(captured.recording.images, layout.images, images.data());
    write(captured.recording.labels, layout.labels, labels.data());
}

void GpuGenerations::read_outputs(const Captured& captured, const HmarOutput& output, Part part) {
    const ModelSpec& model = recordings_.bundle().manifest().hmar();
    const auto side = size_t(model.image_side_px), size = 3 * side * side;
    const Recording& recording = captured.recording;
    const std::byte* end = staging_->data() + InputLayout(captured.batch()).end;
    // the first rows of a place, which are of images; where they will be, once the device is done
    const auto read = [&](const BufferPlace& place) {
        const size_t nbytes = place.nbytes / captured.batch() * part.count;
        auto* target = const_cast<std::byte*>(end);
        device_.copy_out(target, captured.address(place), nbytes);
        end += align(nbytes);
        return target;
    };
    const std::byte* pixels = output.pixels == nullptr ? nullptr : read(recording.pixels);
    const std::byte* image = output.image == nullptr ? nullptr : read(recording.image);
    std::vector<const std::byte*> tokens;
    if (output.tokens != nullptr) {
        for (const BufferPlace& place : recording.tokens) tokens.push_back(read(place));
    }
    device_.wait();
    if (pixels != nullptr) std::memcpy(output.pixels + part.first * size, pixels, part.count * size);
    if (image != nullptr)
        std::memcpy(output.image + part.first * size, image, part.count * size * sizeof(float));
    for (size_t k = 0; k < tokens.size(); ++k) {
        const size_t length = model.length(int(k));
        for (size_t b = 0; b < part.count; ++b) {
            std::memcpy(output.tokens + (part.first + b) * model.num_tokens() + model.first(int(k)),
                        tokens[k] + b * length * sizeof(int32_t), length * sizeof(int32_t));
        }
    }
}

}  // namespace hmar::core
