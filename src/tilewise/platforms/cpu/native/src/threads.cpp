#include "threads.h"

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

// OpenMP's places, if torch brought OpenMP along and the user has threads bound to them (OMP_PROC_BIND, OMP_PLACES).
extern "C" {
__attribute__((weak)) int omp_get_proc_bind(void);
__attribute__((weak)) int omp_get_num_places(void);
__attribute__((weak)) int omp_get_place_num_procs(int place);
__attribute__((weak)) void omp_get_place_proc_ids(int place, int* ids);
}

namespace {

// Time that threads look for work, or for the end of it, before they sleep.
constexpr auto PATIENCE = std::chrono::microseconds(100);

// Calls `there` until it is true, or it has been in vain for long enough.
template <typename There>
bool look(There there) {
    const auto end = std::chrono::steady_clock::now() + PATIENCE;
    do {
        for (int i = 0; i < 32; ++i) {
            if (there()) return true;
            _mm_pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return there();
}

// The rest of a call, in one number, so that whoever takes a task knows that it was there to be taken.
struct Left {
    static constexpr int64_t MOST = 0xFFFFFF;

    uint64_t bits;

    static Left all(int64_t tasks, int64_t threads) { return {uint64_t(threads) << 48 | uint64_t(tasks) << 24}; }
    int64_t next() const { return bits & MOST; }
    int64_t tasks() const { return bits >> 24 & MOST; }
    int64_t threads() const { return bits >> 48; }
    bool for_thread(int64_t thread) const { return next() < tasks() && thread < threads(); }
};

// A worker takes the place that OpenMP's thread of the same number has; else it may run where its creator may.
void settle(int64_t thread) {
#ifdef __linux__
    if (!omp_get_proc_bind || !omp_get_num_places || !omp_get_place_num_procs || !omp_get_place_proc_ids) return;
    const int places = omp_get_num_places();
    if (omp_get_proc_bind() == 0 || places == 0) return;
    const int place = int(thread % places);
    std::vector<int> ids(omp_get_place_num_procs(place));
    omp_get_place_proc_ids(place, ids.data());
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (int id : ids) CPU_SET(id, &cpus);
    sched_setaffinity(0, sizeof(cpus), &cpus);
#endif
}

class Pool {
  public:
    void run(int64_t tasks, int64_t threads, Task task, const void* work) {
        std::unique_lock<std::mutex> only(in_use_, std::try_to_lock);
        if (!only || tasks > Left::MOST) {
            for (int64_t t = 0; t < tasks; ++t) task(work, t, 0);
            return;
        }
        for (; workers_ < threads - 1; ++workers_) std::thread(&Pool::work_on, this, workers_ + 1).detach();
        task_ = task;
        work_ = work;
        done_ = 0;
        left_ = Left::all(tasks, threads).bits;
        if (sleepers_ > 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            work_is_there_.notify_all();
        }
        take(0);
        const auto all_done = [&] { return done_ == tasks; };
        if (look(all_done)) return;
        std::unique_lock<std::mutex> lock(mutex_);
        waiting_ = true;
        all_is_done_.wait(lock, all_done);
        waiting_ = false;
    }

  private:
    // Tasks one by one, until all have been taken.
    //
    // `left` may be of a call that has ended by the time of the exchange. The exchange succeeds only where left_ holds
    // the very same bits at that moment: then the call that runs now has as many tasks and threads, and its task next()
    // is still to be taken. Nothing else was read before: task_ and work_ are looked at behind the exchange.
    void take(int64_t thread) {
        int64_t taken = 0, tasks = 0;
        Left left{left_};
        while (left.for_thread(thread)) {
            if (!left_.compare_exchange_weak(left.bits, left.bits + 1)) continue;
            // The call cannot end before this task is done, so that it is this call's work.
            task_(work_, left.next(), thread);
            tasks = left.tasks();
            ++taken;
            left.bits = left_;
        }
        if (taken == 0) return;
        done_ += taken;
        if (done_ == tasks && waiting_) {
            std::lock_guard<std::mutex> lock(mutex_);
            all_is_done_.notify_one();
        }
    }

    void work_on(int64_t thread) {
        settle(thread);
        const auto something = [&] { return Left{left_}.for_thread(thread); };
        for (;;) {
            if (!look(something)) {
                std::unique_lock<std::mutex> lock(mutex_);
                ++sleepers_;
                work_is_there_.wait(lock, something);
                --sleepers_;
            }
            take(thread);
        }
    }

    // State of the call that runs; valid while a task of it is being done.
    Task task_ = nullptr;
    const void* work_ = nullptr;
    std::atomic<uint64_t> left_{0};
    std::atomic<int64_t> done_{0};

    std::mutex in_use_;
    int64_t workers_ = 0;

    // For those that sleep. Whoever falls asleep says so before it looks for the last time, and whoever changes what it
    // looks for does that before it asks whether somebody sleeps.
    std::mutex mutex_;
    std::condition_variable work_is_there_, all_is_done_;
    std::atomic<int64_t> sleepers_{0};
    std::atomic<bool> waiting_{false};
};

}  // namespace

void run_tasks(int64_t tasks, int64_t threads, Task run, const void* work) {
    static Pool& pool = *new Pool;  // never destroyed: its threads end with the program
    pool.run(tasks, threads, run, work);
}
