// What the runtime takes for granted of a recording that it accepts.
#pragma once

#include "recording.h"

namespace hmar::core {

// Whether nothing of a recording lies outside its buffers.
inline bool is_consistent(const Recording& recording, const RecordingIndex& index) {
    std::vector<uint64_t> sizes = {recording.scratch_nbytes, recording.constants.nbytes};
    for (const BufferContents& contents : index.weights) sizes.push_back(contents.nbytes);
    const auto is_in = [&](int buffer, uint64_t offset, uint64_t nbytes) {
        return buffer >= 0 && size_t(buffer) < sizes.size() && offset <= sizes[size_t(buffer)] &&
               nbytes <= sizes[size_t(buffer)] - offset;
    };
    const auto is_place = [&](const BufferPlace& p) { return is_in(p.buffer, p.offset, p.nbytes); };
    bool good = true;
    for (const RecordedPiece& piece : recording.constants.pieces) {
        good = good && is_in(kConstants, piece.at, piece.nbytes) &&
               (piece.is_of_weights || piece.offset + piece.nbytes <= index.data.nbytes);
    }
    for (const auto& [at, nbytes] : recording.constants.zeros) good = good && is_in(kConstants, at, nbytes);
    for (const RecordedOperation& operation : recording.operations) {
        if (const auto* launch = std::get_if<RecordedLaunch>(&operation)) {
            good = good && launch->kernel >= 0 && size_t(launch->kernel) < recording.kernels.size();
            for (const LaunchArgument& argument : launch->arguments) {
                const auto* pointer = std::get_if<BufferPointer>(&argument);
                good = good && (pointer == nullptr || is_in(pointer->buffer, pointer->offset, 1));
            }
        } else if (const auto* copied = std::get_if<RecordedCopy>(&operation)) {
            good = good && is_in(copied->target.buffer, copied->target.offset, copied->nbytes) &&
                   is_in(copied->source.buffer, copied->source.offset, copied->nbytes);
        } else if (const auto* run = std::get_if<RecordedRun>(&operation)) {
            good = good && index.engines && size_t(run->plan) < index.engines->plans.size();
            if (run->scratch) good = good && is_place(*run->scratch);
            for (const auto* tensors : {&run->inputs, &run->outputs}) {
                for (const RecordedTensor& tensor : *tensors) good = good && is_place(tensor.place);
            }
        } else {
            good = good && is_place(std::get<RecordedZero>(operation).place);
        }
    }
    for (const auto* places : {&recording.inputs, &recording.outputs}) {
        for (const auto& [name, place] : *places) good = good && is_place(place);
    }
    return good;
}

}  // namespace hmar::core
