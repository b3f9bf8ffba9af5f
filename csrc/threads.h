// SPDX-License-Identifier: Apache-2.0
// Threads for code that has no torch to lend it some: started for one loop and joined at its end,
// so a data-loading worker that asks for one thread never starts another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace prune_engine {

class Threads {
 public:
  explicit Threads(int64_t count) : count_(count) {}

  // Calls body(first, last) on equal pieces of [begin, end), none much smaller than grain. The
  // first exception of a piece is thrown here, after all pieces have ended.
  template <typename Body>
  void operator()(int64_t begin, int64_t end, int64_t grain, const Body& body) const {
    if (begin >= end) return;
    const int64_t pieces = std::min(count_, (end - begin + grain - 1) / grain);
    Pool pool;
    const auto run = [&](int64_t piece) {
      try {
        const int64_t size = end - begin;
        body(begin + size * piece / pieces, begin + size * (piece + 1) / pieces);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(pool.guard);
        if (!pool.error) pool.error = std::current_exception();
      }
    };
    for (int64_t piece = 1; piece < pieces; ++piece) pool.threads.emplace_back(run, piece);
    run(0);
    pool.join();
    if (pool.error) std::rethrow_exception(pool.error);
  }

 private:
  struct Pool {
    std::mutex guard;
    std::exception_ptr error;
    std::vector<std::thread> threads;

    void join() {
      for (std::thread& thread : threads) thread.join();
      threads.clear();
    }
    ~Pool() { join(); }  // where the system refused to start one more
  };

  int64_t count_;
};

}  // namespace prune_engine
