// A JSON object as a record: fields are read once each, and what is missing, unknown or mistyped is named.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "error.h"

namespace hmar::core {

using Json = nlohmann::json;

// What `source` holds. Throws Error where it is not JSON, or nested as nothing that is read here.
inline Json parse_json(const std::string& json, const std::string& source) {
    constexpr int kMaxDepth = 16;
    const auto check = [&](int depth, Json::parse_event_t, Json&) {
        if (depth > kMaxDepth) throw Error(HMAR_INVALID_BUNDLE, text(source, ": nested too deeply"));
        return true;
    };
    try {
        return Json::parse(json, check);
    } catch (const Json::exception& error) {
        throw Error(HMAR_INVALID_BUNDLE, text(source, ": not JSON (", error.what(), ")"));
    }
}

class Record {
  public:
    Record(const Json& data, std::string where) : data_(data), where_(std::move(where)) {
        if (!data.is_object()) fail(text("expected an object, got ", data.type_name()));
    }

    const std::string& where() const { return where_; }

    [[noreturn]] void fail(const std::string& message) const {
        throw Error(HMAR_INVALID_BUNDLE, text(where_, ": ", message));
    }

    const Json& field(const char* name) {
        const auto found = data_.find(name);
        if (found == data_.end()) fail(text("missing field '", name, "'"));
        read_.insert(name);
        return *found;
    }

    // Null where the field is missing or null.
    const Json* optional_field(const char* name) {
        read_.insert(name);
        const auto found = data_.find(name);
        return found == data_.end() || found->is_null() ? nullptr : &*found;
    }

    const Json& list(const char* name) {
        const Json& value = field(name);
        if (!value.is_array()) fail(text(name, " must be a list, got ", value.type_name()));
        return value;
    }

    std::string string(const char* name) {
        const Json& value = field(name);
        if (!value.is_string()) fail(text(name, " must be a string, got ", value.type_name()));
        return value.get<std::string>();
    }

    bool boolean(const char* name) {
        const Json& value = field(name);
        if (!value.is_boolean()) fail(text(name, " must be true or false, got ", value.type_name()));
        return value.get<bool>();
    }

    double number(const char* name) {
        const Json& value = field(name);
        if (!value.is_number()) fail(text(name, " must be a number, got ", value.type_name()));
        return value.get<double>();
    }

    int64_t integer(const char* name, int64_t least, int64_t most) {
        return integer(field(name), name, least, most);
    }

    int64_t integer(const Json& value, const std::string& name, int64_t least, int64_t most) const {
        const bool fits =
            value.is_number_unsigned() ? value.get<uint64_t>() <= uint64_t(most) : value.is_number_integer();
        if (!fits || value.get<int64_t>() < least || value.get<int64_t>() > most) {
            fail(text(name, " must be an integer in ", least, "..", most, ", got ", excerpt(value)));
        }
        return value.get<int64_t>();
    }

    std::vector<int64_t> integers(const char* name, int64_t least, int64_t most) {
        std::vector<int64_t> values;
        for (const Json& item : list(name)) values.push_back(integer(item, name, least, most));
        return values;
    }

    // To be called when all known fields are read.
    void finish() const {
        for (const auto& [name, value] : data_.items()) {
            if (read_.count(name) == 0) fail(text("unknown field '", name, "'"));
        }
    }

    static std::string excerpt(const Json& value) {
        const std::string whole = value.dump(-1, ' ', true, Json::error_handler_t::replace);
        return whole.size() <= 60 ? whole : whole.substr(0, 60) + "...";
    }

  private:
    const Json& data_;
    const std::string where_;
    std::set<std::string> read_;
};

}  // namespace hmar::core
