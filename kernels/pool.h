// The pool of threads, and `parallel`, which shares a range between them. kernels.cpp includes this file in its unnamed
// namespace.
//
// The calling thread works too. All threads take item after item from a shared counter, and a thread is waited for only
// while it holds an item, so one that the system does not run, because other processes are busy, costs nothing. Threads
// are started on first use, never joined (the process may end while they sleep), and started anew in a child after
// fork. Where the system starts no more threads (a limit of processes or of memory), those that run do the work, if
// need be the caller alone: no call fails.

class Pool {
  public:
    template <class Body>
    void run(int64_t n, const Body& body) {
        auto call = [](const void* b, int64_t i) { (*(const Body*)b)(i); };
        int helpers = (int)(n - 1 < threads - 1 ? n - 1 : threads - 1);
        std::unique_lock<std::mutex> turn(turns, std::defer_lock);
        if (helpers < 1 || !turn.try_lock()) {  // another thread of the process uses the pool, so this one works alone
            for (int64_t i = 0; i < n; ++i) body(i);
            return;
        }
        {
            std::lock_guard<std::mutex> guard(lock);
            while (started < helpers && start()) ++started;
            if (helpers > started) helpers = started;
            job = call;
            data = &body;
            items = n;
            next.store(0, std::memory_order_relaxed);
            wanted = helpers;
        }
        for (int i = 0; i < helpers; ++i) wake.notify_one();
        take(call, &body, n);
        std::unique_lock<std::mutex> guard(lock);
        wanted = 0;
        done.wait(guard, [this] { return active == 0; });
    }

    std::atomic<int> threads{1};

  private:
    bool start() {
        try {
            std::thread([this] { work(); }).detach();
            return true;
        } catch (...) {  // std::system_error or std::bad_alloc; no exception may pass a C interface
            return false;
        }
    }

    void take(void (*call)(const void*, int64_t), const void* body, int64_t n) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) call(body, i);
    }

    void work() {
        std::unique_lock<std::mutex> guard(lock);
        for (;;) {
            wake.wait(guard, [this] { return wanted > 0; });
            --wanted;
            ++active;
            auto call = job;
            auto body = data;
            auto n = items;
            guard.unlock();
            take(call, body, n);
            guard.lock();
            if (--active == 0) done.notify_one();
        }
    }

    std::mutex turns, lock;
    std::condition_variable wake, done;
    std::atomic<int64_t> next{0};
    void (*job)(const void*, int64_t) = nullptr;
    const void* data = nullptr;
    int64_t items = 0;
    int started = 0, wanted = 0, active = 0;
};

std::atomic<Pool*> pool_of_process{nullptr};
std::atomic<int> wanted_threads{1};

// In a child after fork, the parent's pool has no threads, and its locks may be held: the child makes a pool of its
// own.
const int forks = pthread_atfork(nullptr, nullptr, [] { pool_of_process.store(nullptr); });

// The process's pool, or null where there is no memory for one. No lock guards it, since a thread could hold the lock
// while another one forks.
Pool* pool() {
    Pool* p = pool_of_process.load();
    if (!p) {
        Pool* made = new (std::nothrow) Pool;
        if (pool_of_process.compare_exchange_strong(p, made))
            p = made;
        else
            delete made;  // another thread has stored its pool first; this one has no threads yet
    }
    if (p) p->threads = wanted_threads.load();
    return p;
}

// Calls f(first, last) for 0..n in pieces of `grain`, small enough to share and large enough to be worth waking a
// thread.
template <class F>
void parallel(int64_t n, int64_t grain, const F& f) {
    if (grain < 1) grain = 1;
    Pool* const helpers = n <= grain || wanted_threads.load() == 1 ? nullptr : pool();
    if (!helpers) {
        if (n > 0) f((int64_t)0, n);
        return;
    }
    helpers->run((n + grain - 1) / grain, [&](int64_t i) {
        const int64_t first = i * grain, last = first + grain < n ? first + grain : n;
        f(first, last);
    });
}
