// Whether this process lost its threads in a fork: only the thread that calls fork exists in the
// child, so work that is handed to the others is never done, and whoever waits for it hangs.
#pragma once

#include <pthread.h>

#include <atomic>

namespace gcext {

inline std::atomic<bool> threads_used{false};  // set before work is handed to torch's threads
inline std::atomic<bool> threads_lost{false};

// Registers, once a process, what a fork does to the flags.
inline bool threads_were_lost() {
  static const bool watched = [] {
    pthread_atfork(nullptr, nullptr, [] {
      if (threads_used) threads_lost = true;
    });
    return true;
  }();
  return watched && threads_lost;
}

}  // namespace gcext
