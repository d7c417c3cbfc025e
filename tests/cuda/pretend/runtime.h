// A CUDA runtime without a GPU: what torch's own host code calls of libcudart, over the machine's memory.
//
// Preloaded, its functions take the place of the real ones; what is missing here is the real library's, which says that
// there is no driver. Streams run at once. Captures, what they forbid, and waits of the host are as CUDA documents
// them. Kernels are not run here: pretended.py has the CPU compute what they would have.
#pragma once
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))
#define TRY(call) \
  if (E error_ = (call)) return error_
typedef cudaError_t E;

enum Count { WAITS, KERNELS, COPIES, SETS, REPLAYS, PAGEABLE, COUNTS };
enum Kind { HOST = 1, DEVICE };  // of a block of memory: pinned, or the device's

struct Node {  // of a graph: an operation of pretended.py, or a copy or memset where to, from, bytes are given
  long long operation;
  void *to;
  const void *from;
  size_t bytes;
  int value;
};
struct Graph : std::vector<Node> {
  size_t nodes = 0;  // on a device, where an operation may be several
};
struct Capture;
struct Stream {
  int device;
  unsigned flags;
  Capture *capture = nullptr;
};
struct Capture {
  unsigned long long id;
  cudaStreamCaptureMode mode;
  pthread_t thread;
  Stream *origin;
  Graph *graph;
  bool broken = false;
  std::set<Stream *> joined;
};
struct Event {
  bool recorded = false;
  Capture *capture = nullptr;
  unsigned long long capture_id = 0;
};
struct Block {
  size_t bytes;
  int device;
  Kind kind;
};

inline std::recursive_mutex lock_;
typedef std::lock_guard<std::recursive_mutex> Guard;
inline thread_local int device_ = 0, swallowing_ = 0;
inline thread_local E last_ = cudaSuccess;
inline thread_local cudaStreamCaptureMode mode_ = cudaStreamCaptureModeGlobal;
inline std::map<uintptr_t, Block> blocks_;
inline std::map<const void *, std::string> kernels_;
inline std::vector<Capture *> captures_;  // under way
inline unsigned long long next_id_ = 1;
inline Stream legacy_[16], per_thread_[16];
inline size_t used_[16];
inline std::atomic<long long> counts_[COUNTS], until_broken_{-1};
inline void (*run_)(long long) = nullptr;
inline void (*tell_)(const char *, int) = nullptr;

inline long long number(const char *name, long long otherwise) {
  const char *text = getenv(name);
  return text ? atoll(text) : otherwise;
}
inline int devices() {
  static int n = (int)number("PRETEND_CUDA", 0);
  return n;
}
inline size_t total() {
  static size_t n = (size_t)number("PRETEND_BYTES", 8LL << 30);
  return n;
}
inline void tell(const char *what, int code) {
  if (tell_) tell_(what, code);
}
inline E fail(E e) { return e == cudaSuccess ? e : last_ = e; }
inline E spoil(Capture *capture, const char *what, E e) {
  if (capture) capture->broken = true;
  tell(what, e);
  return fail(e);
}
// After an illegal access nothing works in this process any more. $PRETEND_BREAK: after so many launches.
inline E sticky() {
  static bool asked = (until_broken_ = number("PRETEND_BREAK", -1), true);
  return asked && until_broken_ == 0 ? fail(cudaErrorIllegalAddress) : cudaSuccess;
}
inline Stream *of(cudaStream_t s) {
  if (s == nullptr || s == cudaStreamLegacy) return &legacy_[device_];
  return s == cudaStreamPerThread ? &per_thread_[device_] : reinterpret_cast<Stream *>(s);
}
inline bool alive(unsigned long long id) {
  return std::any_of(captures_.begin(), captures_.end(), [id](Capture *c) { return c->id == id; });
}
// "Potentially unsafe" calls are forbidden while this thread captures, or another does in global mode.
inline E unsafe(const char *what) {
  Guard guard(lock_);
  TRY(sticky());
  if (mode_ == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (Capture *c : captures_) {
    bool mine = pthread_equal(c->thread, pthread_self()) && c->mode != cudaStreamCaptureModeRelaxed;
    bool any = mode_ == cudaStreamCaptureModeGlobal && c->mode == cudaStreamCaptureModeGlobal;
    if (mine || any) return spoil(c, what, cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}
// The legacy stream waits for every blocking stream: no work on it while one of those is captured.
inline E implicit(Stream *s) {
  TRY(sticky());
  if (s != &legacy_[s->device]) return cudaSuccess;
  Guard guard(lock_);
  for (Capture *c : captures_)
    if (!(c->origin->flags & cudaStreamNonBlocking) && c->origin->device == s->device)
      return spoil(c, "legacy stream", cudaErrorStreamCaptureImplicit);
  return cudaSuccess;
}
inline E waited(const char *what) {
  counts_[WAITS]++;
  tell(what, 0);
  return cudaSuccess;
}
inline size_t pages(size_t bytes) { return std::max<size_t>(1, (bytes + 4095) / 4096) * 4096; }
inline E take(void **p, size_t bytes, Kind kind) {
  Guard guard(lock_);
  *p = nullptr;
  if (kind == DEVICE && used_[device_] + bytes > total()) return fail(cudaErrorMemoryAllocation);
  void *got = mmap(nullptr, pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (got == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
  if (kind == DEVICE) {
    memset(got, 0xFF, bytes);  // NaN, −1: what is read before it is written shows
    used_[device_] += bytes;
  }
  blocks_[(uintptr_t)got] = Block{bytes, device_, kind};
  *p = got;
  return cudaSuccess;
}
inline void give(void *p) {
  Guard guard(lock_);
  auto it = blocks_.find((uintptr_t)p);
  if (it == blocks_.end()) return;
  if (it->second.kind == DEVICE) used_[it->second.device] -= it->second.bytes;
  munmap(p, pages(it->second.bytes));
  blocks_.erase(it);
}
inline const Block *find(const void *p) {
  Guard guard(lock_);
  auto it = blocks_.upper_bound((uintptr_t)p);
  if (it == blocks_.begin()) return nullptr;
  --it;
  return (uintptr_t)p < it->first + std::max<size_t>(1, it->second.bytes) ? &it->second : nullptr;
}
inline E copy(void *to, const void *from, size_t bytes, Stream *s) {
  TRY(implicit(s));
  bool pageable = !find(from) || !find(to);
  counts_[COPIES]++;
  if (pageable) counts_[PAGEABLE]++;
  if (pageable && s->capture) return spoil(s->capture, "pageable copy", cudaErrorStreamCaptureUnsupported);
  if (s->capture) s->capture->graph->nodes++;
  if (swallowing_) return cudaSuccess;  // pretended.py does it, in the operation that it belongs to
  if (s->capture) s->capture->graph->push_back(Node{0, to, from, bytes, 0});
  else memmove(to, from, bytes);
  return cudaSuccess;
}
inline E launched(const void *kernel, cudaStream_t stream) {
  if (until_broken_ > 0) until_broken_--;
  TRY(implicit(of(stream)));
  counts_[KERNELS]++;
  if (of(stream)->capture) of(stream)->capture->graph->nodes++;
  if (swallowing_) return cudaSuccess;
  Guard guard(lock_);
  auto it = kernels_.find(kernel);
  tell(it == kernels_.end() ? "an unknown kernel" : it->second.c_str(), cudaErrorInvalidDeviceFunction);
  return fail(cudaErrorInvalidDeviceFunction);
}
