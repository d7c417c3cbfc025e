// Devices, memory, streams and events; and what pretended.py asks.
#include "runtime.h"

API void pretend_callbacks(void (*run)(long long), void (*told)(const char *, int)) { run_ = run, tell_ = told; }
API int pretend_swallow(int by) { return (swallowing_ += by) - by; }
API long long pretend_count(int which) { return counts_[which]; }
API void pretend_break() { until_broken_ = 0; }
API int pretend_capturing(void *stream) { return of((cudaStream_t)stream)->capture != nullptr; }
API int pretend_kernels(void *stream, int n) {  // launches that torch's own code would make with a library
  int error = 0;
  while (n-- && !error) swallowing_++, error = launched(nullptr, (cudaStream_t)stream), swallowing_--;
  return error;
}
API void pretend_record(void *stream, long long operation) {
  of((cudaStream_t)stream)->capture->graph->push_back(Node{operation, nullptr, nullptr, 0, 0});
}

// ------------------------------------------------------------------------------------------------ devices, errors
API E cudaGetDeviceCount(int *n) { return (*n = devices()) ? cudaSuccess : fail(cudaErrorNoDevice); }
API E cudaGetDevice(int *d) { return *d = device_, cudaSuccess; }
API E cudaSetDevice(int d) {
  if (d < 0 || d >= devices()) return fail(cudaErrorInvalidDevice);
  return device_ = d, cudaSuccess;
}
API E cudaDriverGetVersion(int *v) { return *v = CUDART_VERSION, cudaSuccess; }
API E cudaRuntimeGetVersion(int *v) { return *v = CUDART_VERSION, cudaSuccess; }
API E cudaPeekAtLastError() { return sticky(), last_; }
API E cudaGetLastError() {
  sticky();
  E e = last_;
  last_ = cudaSuccess;
  return e;
}
#if CUDART_VERSION >= 13000
#define PROPERTIES cudaGetDeviceProperties
#else
#define PROPERTIES cudaGetDeviceProperties_v2
#endif
API E PROPERTIES(cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "Pretend H200");
  p->major = 9, p->totalGlobalMem = total(), p->multiProcessorCount = 132, p->warpSize = 32;
  p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448, p->sharedMemPerMultiprocessor = 233472, p->regsPerBlock = 65536;
  p->regsPerMultiprocessor = 65536, p->l2CacheSize = 60 << 20, p->memoryBusWidth = 6144;
  for (int i = 0; i < 3; i++) p->maxThreadsDim[i] = i < 2 ? 1024 : 64, p->maxGridSize[i] = i ? 65535 : 2147483647;
  p->unifiedAddressing = p->managedMemory = p->concurrentKernels = p->canMapHostMemory = p->cooperativeLaunch = 1;
  p->pciBusID = d, p->memPitch = 2147483647, p->textureAlignment = 512;
  return d < devices() ? cudaSuccess : fail(cudaErrorInvalidDevice);
}
API E cudaDeviceGetAttribute(int *v, cudaDeviceAttr attribute, int) {
  static const std::map<int, int> known = {
      {cudaDevAttrComputeCapabilityMajor, 9},         {cudaDevAttrMultiProcessorCount, 132},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448}, {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472},
      {cudaDevAttrWarpSize, 32},                      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 2048}, {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
      {cudaDevAttrMaxRegistersPerBlock, 65536},       {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
      {cudaDevAttrMaxGridDimX, 2147483647},           {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535},                {cudaDevAttrL2CacheSize, 60 << 20},
      {cudaDevAttrClockRate, 1980000}};
  auto it = known.find(attribute);
  return *v = it == known.end() ? 0 : it->second, cudaSuccess;
}
API E cudaDeviceGetPCIBusId(char *s, int n, int d) { return snprintf(s, n, "0000:%02x:00.0", d), cudaSuccess; }
API E cudaDeviceGetStreamPriorityRange(int *least, int *most) { return *least = 0, *most = -5, cudaSuccess; }
API E cudaDeviceCanAccessPeer(int *can, int, int) { return *can = 0, cudaSuccess; }
API E cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
API E cudaDeviceSynchronize() {
  TRY(unsafe("cudaDeviceSynchronize"));
  return waited("cudaDeviceSynchronize");
}
API E cudaMemGetInfo(size_t *free, size_t *all) {
  Guard guard(lock_);
  return *all = total(), *free = total() - used_[device_], cudaSuccess;
}
API E cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *m) { return std::swap(*m, mode_), cudaSuccess; }

// ------------------------------------------------------------------------------------------------ memory
API E cudaMalloc(void **p, size_t n) {
  TRY(unsafe("cudaMalloc"));
  return take(p, n, DEVICE);
}
API E cudaHostAlloc(void **p, size_t n, unsigned) {
  TRY(unsafe("cudaHostAlloc"));
  return take(p, n, HOST);
}
API E cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
API E cudaFree(void *p) {
  if (!p) return cudaSuccess;
  TRY(unsafe("cudaFree"));
  return give(p), cudaSuccess;
}
API E cudaFreeHost(void *p) { return cudaFree(p); }
API E cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  const Block *b = find(p);
  a->type = !b ? cudaMemoryTypeUnregistered : b->kind == HOST ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  a->device = b ? b->device : -2;
  a->devicePointer = b ? (void *)p : nullptr, a->hostPointer = b && b->kind == HOST ? (void *)p : nullptr;
  return cudaSuccess;
}
API E cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind) {
  TRY(unsafe("cudaMemcpy"));
  waited("cudaMemcpy");
  return copy(to, from, n, of(nullptr));
}
API E cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind, cudaStream_t s) {
  return copy(to, from, n, of(s));
}
API E cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t n, cudaStream_t s) {
  return copy(to, from, n, of(s));
}
API E cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t stream) {
  Stream *s = of(stream);
  TRY(implicit(s));
  counts_[SETS]++;
  if (s->capture) s->capture->graph->nodes++;
  if (swallowing_) return cudaSuccess;
  if (s->capture) s->capture->graph->push_back(Node{0, to, nullptr, n, value});
  else memset(to, value, n);
  return cudaSuccess;
}
API E cudaMemset(void *to, int value, size_t n) { return cudaMemsetAsync(to, value, n, nullptr); }

// ------------------------------------------------------------------------------------------------ streams, events
API E cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int) {
  return *s = (cudaStream_t) new Stream{device_, flags}, cudaSuccess;
}
API E cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return cudaStreamCreateWithPriority(s, flags, 0); }
API E cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithPriority(s, 0, 0); }
API E cudaStreamDestroy(cudaStream_t s) { return delete of(s), cudaSuccess; }
API E cudaStreamGetPriority(cudaStream_t, int *p) { return *p = 0, cudaSuccess; }
static E settled(cudaStream_t stream, const char *what) {
  Stream *s = of(stream);
  return s->capture ? spoil(s->capture, what, cudaErrorStreamCaptureUnsupported) : implicit(s);
}
API E cudaStreamQuery(cudaStream_t s) { return settled(s, "cudaStreamQuery"); }
API E cudaStreamSynchronize(cudaStream_t s) {
  TRY(settled(s, "cudaStreamSynchronize"));
  return waited("cudaStreamSynchronize");
}
API E cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return *e = (cudaEvent_t) new Event, cudaSuccess; }
API E cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
API E cudaEventDestroy(cudaEvent_t e) { return delete (Event *)e, cudaSuccess; }
API E cudaEventRecord(cudaEvent_t e, cudaStream_t stream) {
  Guard guard(lock_);
  Stream *s = of(stream);
  TRY(implicit(s));
  *(Event *)e = Event{true, s->capture, s->capture ? s->capture->id : 0};
  return cudaSuccess;
}
API E cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) { return cudaEventRecord(e, s); }
API E cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Guard guard(lock_);
  Event *e = (Event *)event;
  Stream *s = of(stream);
  TRY(implicit(s));
  bool captured = e->capture_id && alive(e->capture_id);
  if (s->capture && !captured && e->recorded)
    return spoil(s->capture, "wait for work outside the capture", cudaErrorStreamCaptureIsolation);
  if (captured && !s->capture) s->capture = e->capture, e->capture->joined.insert(s);
  return cudaSuccess;
}
static E asked(cudaEvent_t event, const char *what) {
  Event *e = (Event *)event;
  if (e->capture_id && alive(e->capture_id)) return spoil(e->capture, what, cudaErrorCapturedEvent);
  return unsafe(what);
}
API E cudaEventQuery(cudaEvent_t e) { return asked(e, "cudaEventQuery"); }
API E cudaEventSynchronize(cudaEvent_t e) {
  TRY(asked(e, "cudaEventSynchronize"));
  return waited("cudaEventSynchronize");
}
API E cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) { return *ms = 1.0f, cudaSuccess; }
API E cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data) {
  if (!of(s)->capture) f(data);
  return cudaSuccess;
}
