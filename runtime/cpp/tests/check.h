// Checks of the tests: a failed one is printed and counted, and the program goes on.
#pragma once

#include <cstdio>
#include <string>

inline int failed_checks = 0;

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            ++failed_checks;                                                     \
        }                                                                        \
    } while (false)

// A value where `expression` throws an Exception whose message holds `part`.
#define CHECK_THROWS(expression, Exception, part)                                                        \
    do {                                                                                                 \
        std::string message = "nothing was thrown";                                                      \
        bool held = false;                                                                               \
        try {                                                                                            \
            (void)(expression);                                                                          \
        } catch (const Exception& error) {                                                               \
            message = error.what();                                                                      \
            held = message.find(part) != std::string::npos;                                              \
        }                                                                                                \
        if (!held) {                                                                                     \
            std::fprintf(stderr, "%s:%d: %s: expected '%s', got: %s\n", __FILE__, __LINE__, #expression, \
                         std::string(part).c_str(), message.c_str());                                    \
            ++failed_checks;                                                                             \
        }                                                                                                \
    } while (false)

// What main returns.
inline int checked() {
    if (failed_checks > 0) std::fprintf(stderr, "%d checks failed\n", failed_checks);
    return failed_checks > 0;
}
