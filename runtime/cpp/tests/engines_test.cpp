// Recordings that run TensorRT engines, on stand-ins for it and the driver: steps, batches, threads,
// cancelling. Runs compute nothing here; tests/parity/test_cpp_engines.py has them computed.
#include <atomic>
#include <sstream>
#include <thread>

#include "fake_tensorrt.h"
#include "on_fakes.h"

namespace {

struct FakeTensorRt {
    decltype(&fake_tensorrt_on_run) on_run;
    decltype(&fake_tensorrt_live) live;
};
FakeTensorRt tensorrt;
std::atomic<int> runs{0};
std::atomic<int> wrong{0};

hmar_session_options gpu_options() {
    hmar_session_options of = options();
    of.tensorrt = FAKE_TENSORRT;
    return of;
}

// Outputs come after inputs in no order; all have addresses, and inputs shapes.
void note(const FakeRun* run) {
    ++runs;
    bool has_input = false, has_output = false;
    for (size_t i = 0; i < run->num_tensors; ++i) {
        const FakeTensor& tensor = run->tensors[i];
        wrong += tensor.address == 0;
        (tensor.shape != nullptr ? has_input : has_output) = true;
    }
    wrong += !has_input || !has_output || std::string(run->plan, run->plan_size).find("graph") > 2;
}

void test_himar(const hmar::Bundle& bundle) {
    const hmar::Session session(bundle, gpu_options());
    hmar::HimarRequest request(bundle, {1, 2, 3, 4});
    int steps = 0;
    request.on_step = [&](const hmar_himar_step_event&) { return ++steps > 0; };
    session.generate(request);
    CHECK(steps == 2 * (4 * bundle.info().pivot_side + request.num_iter));  // in two parts
    const int once = runs;
    session.generate(request);
    CHECK(runs == 2 * once && once > steps);

    request.on_step = [](const hmar_himar_step_event& event) { return event.step_idx < 2; };
    CHECK_THROWS(session.generate(request), hmar::Error, "step 2");
    const hmar::Cancel cancel;
    request.on_step = [&](const hmar_himar_step_event&) {
        cancel.request();
        return true;
    };
    request.cancel = &cancel;
    CHECK_THROWS(session.generate(request), hmar::Error, "cancelled");
    request.on_step = nullptr, request.cancel = nullptr, request.num_iter = 7;
    CHECK_THROWS(session.generate(request), hmar::Error, "no recording has these settings");
}

template <typename Request>
void test_threads(const hmar::Bundle& bundle) {
    const hmar::Session session(bundle, gpu_options());
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
        threads.emplace_back([&, i] { session.generate(Request(bundle, {i, i + 1})); });
    }
    for (std::thread& thread : threads) thread.join();
}

}  // namespace

// The bundles of HMAR_TEST_ENGINES, with colons between them.
int main() {
    const char* folders = std::getenv("HMAR_TEST_ENGINES");
    return run_on_fakes([&](const hmar::Bundle&) {
        void* library = dlopen(FAKE_TENSORRT, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr || folders == nullptr) std::abort();
        find(tensorrt.on_run, library, "fake_tensorrt_on_run");
        find(tensorrt.live, library, "fake_tensorrt_live");
        tensorrt.on_run(note);
        std::istringstream list(folders);
        for (std::string folder; std::getline(list, folder, ':');) {
            const hmar::Bundle bundle(folder);
            runs = 0;
            if (std::string(bundle.info().family) == "himar") {
                test_himar(bundle);
                test_threads<hmar::HimarRequest>(bundle);
            } else {
                test_threads<hmar::Request>(bundle);
            }
            CHECK(runs > 0);
        }
        CHECK(wrong == 0);
        CHECK(tensorrt.live() == 0);
    });
}
