// Threads that share out the tasks of a kernel.
//
// Whoever calls works as well, and waits only for tasks that somebody has begun. So a thread that the system keeps off
// the CPU, because something else runs there, holds up nobody; at a barrier all would wait for it. Between calls threads
// look for work a moment longer, as the next kernel of a step mostly comes within microseconds, and then they sleep.
//
// One call at a time has the threads. One that comes meanwhile, from another thread of the program, works alone.
#pragma once

#include <cstdint>

using Task = void (*)(const void* work, int64_t task, int64_t thread);

void run_tasks(int64_t tasks, int64_t threads, Task run, const void* work);

// Calls work(task, thread) once for each task of [0, tasks), the first ones first, on so many threads at most. Two calls
// at the same time differ in `thread`, which is below `threads`. Work must not call `share` itself.
template <typename Work>
static inline void share(int64_t tasks, int64_t threads, const Work& work) {
    if (tasks <= 1 || threads <= 1) {
        for (int64_t task = 0; task < tasks; ++task) work(task, int64_t(0));
        return;
    }
    auto run = [](const void* own, int64_t task, int64_t thread) { (*static_cast<const Work*>(own))(task, thread); };
    run_tasks(tasks, threads, run, &work);
}
