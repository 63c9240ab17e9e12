// A service in small: requests on standard input, `LABEL SEED FILE.ppm` a line, go to workers that share one
// session, so one copy of the weights. A request that fails is answered, and the service goes on.
//
//   service BUNDLE LIBONNXRUNTIME NUM_WORKERS < requests
#include <fstream>
#include <hmar_runtime.hpp>
#include <iostream>
#include <mutex>
#include <sstream>
#include <thread>

class Service {
  public:
    Service(const std::string& bundle, const hmar_session_options& options)
        : bundle_(bundle), session_(bundle_, options) {}

    // Answers requests until there are no more.
    void work() {
        for (std::string line; next(line);) {
            try {
                reply(line + ": " + answer(line));
            } catch (const hmar::Error& error) {
                reply(line + ": " + hmar_status_name(error.status()) + ": " + error.what());
            }
        }
    }

  private:
    std::string answer(const std::string& line) const {
        std::istringstream fields(line);
        int32_t label;
        uint64_t seed;
        std::string path;
        if (!(fields >> label >> seed >> path)) return "expected LABEL SEED FILE";
        hmar::Request request(bundle_, {label});
        request.seed = seed;
        const hmar::Images images = session_.generate(request);
        std::ofstream file(path, std::ios::binary);
        file << "P6 " << images.side_px << " " << images.side_px << " 255\n";
        file.write(reinterpret_cast<const char*>(images.pixels.data()),
                   std::streamsize(images.pixels.size()));
        return file ? "done" : "cannot be written";
    }

    bool next(std::string& line) {
        const std::lock_guard<std::mutex> lock(input_);
        return bool(std::getline(std::cin, line));
    }

    void reply(const std::string& text) {
        const std::lock_guard<std::mutex> lock(output_);
        std::cout << text << std::endl;
    }

    const hmar::Bundle bundle_;
    const hmar::Session session_;
    std::mutex input_, output_;
};

int main(int argc, char** argv) {
    if (argc != 4) return std::cerr << "usage: service BUNDLE LIBONNXRUNTIME NUM_WORKERS\n", 2;
    hmar_session_options options{};
    options.library = argv[2];
    options.threads = 1;  // the workers are what runs at once
    Service service(argv[1], options);
    std::vector<std::thread> workers;
    for (int i = 0; i < std::stoi(argv[3]); ++i) workers.emplace_back(&Service::work, &service);
    for (std::thread& worker : workers) worker.join();
}
