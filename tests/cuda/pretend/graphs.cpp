// Captures and graphs, kernels, and what torch looks up in libcuda.
#include "runtime.h"

#if CUDART_VERSION >= 13000
#define CAPTURE_INFO cudaStreamGetCaptureInfo
#define EDGES , const cudaGraphEdgeData **edges
#else
#define CAPTURE_INFO cudaStreamGetCaptureInfo_v2
#define EDGES
#endif

API E cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Guard guard(lock_);
  Stream *s = of(stream);
  if (s == &legacy_[device_]) return fail(cudaErrorStreamCaptureUnsupported);
  if (s->capture) return fail(cudaErrorIllegalState);
  s->capture = new Capture{next_id_++, mode, pthread_self(), s, new Graph};
  captures_.push_back(s->capture);
  return cudaSuccess;
}
API E cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) {
  Guard guard(lock_);
  Stream *s = of(stream);
  Capture *c = s->capture;
  *out = nullptr;
  if (!c) return fail(cudaErrorIllegalState);
  if (c->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(c->thread, pthread_self()))
    return fail(cudaErrorStreamCaptureWrongThread);
  for (Stream *other : c->joined) other->capture = nullptr;
  s->capture = nullptr;
  captures_.erase(std::find(captures_.begin(), captures_.end(), c));
  if (c->broken) delete c->graph;
  else *out = (cudaGraph_t)c->graph;
  bool broken = c->broken;
  delete c;
  return broken ? fail(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}
API E cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
  TRY(implicit(of(stream)));
  Capture *c = of(stream)->capture;
  *status = !c          ? cudaStreamCaptureStatusNone
            : c->broken ? cudaStreamCaptureStatusInvalidated
                        : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
API E CAPTURE_INFO(cudaStream_t s, cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
                   const cudaGraphNode_t **before EDGES, size_t *n) {
  TRY(cudaStreamIsCapturing(s, status));
  Capture *c = of(s)->capture;
  if (id) *id = c ? c->id : 0;
  if (graph) *graph = c ? (cudaGraph_t)c->graph : nullptr;
  if (before) *before = nullptr;
#if CUDART_VERSION >= 13000
  if (edges) *edges = nullptr;
#endif
  if (n) *n = 0;
  return cudaSuccess;
}
API E cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long) {
  return *e = (cudaGraphExec_t) new Graph(*(Graph *)g), cudaSuccess;
}
API E cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags) {
  return cudaGraphInstantiate(e, g, flags);
}
API E cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *, size_t *n) { return *n = ((Graph *)g)->nodes, cudaSuccess; }
API E cudaGraphDestroy(cudaGraph_t g) { return delete (Graph *)g, cudaSuccess; }
API E cudaGraphExecDestroy(cudaGraphExec_t e) {
  TRY(unsafe("cudaGraphExecDestroy"));
  return delete (Graph *)e, cudaSuccess;
}
API E cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
  TRY(sticky());
  if (of(s)->capture) return fail(cudaErrorStreamCaptureUnsupported);
  counts_[REPLAYS]++;
  for (const Node &node : *(Graph *)e)
    if (node.operation) run_(node.operation);
    else if (node.from) memmove(node.to, node.from, node.bytes);
    else memset(node.to, node.value, node.bytes);
  return cudaSuccess;
}
API E cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t, unsigned, unsigned) { return cudaSuccess; }
API E cudaUserObjectCreate(cudaUserObject_t *o, void *, cudaHostFn_t, unsigned, unsigned) {
  return *o = nullptr, cudaSuccess;
}
API E cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaSuccess; }

// ------------------------------------------------------------------------------------------------ kernels
API E cudaLaunchKernel(const void *f, dim3, dim3, void **, size_t, cudaStream_t s) { return launched(f, s); }
API E cudaLaunchCooperativeKernel(const void *f, dim3, dim3, void **, size_t, cudaStream_t s) { return launched(f, s); }
API E cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **) { return launched(f, c->stream); }
API E __cudaGetKernel(void **kernel, const void *f) { return *kernel = (void *)f, cudaSuccess; }
API E __cudaLaunchKernel(void *f, dim3, dim3, void **, size_t, cudaStream_t s) { return launched(f, s); }
static thread_local cudaStream_t configured_;  // <<<…>>> is kept here until its kernel is launched
API unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void *s) { return configured_ = (cudaStream_t)s, 0; }
API E __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  return *grid = *block = dim3{1, 1, 1}, *shared = 0, *(cudaStream_t *)stream = configured_, cudaSuccess;
}
API void __cudaRegisterFunction(void **, const char *f, char *, const char *name, int, void *, void *, void *, void *,
                                int *) {
  Guard guard(lock_);
  kernels_[f] = name;
}
API void **__cudaRegisterFatBinary(void *) {
  static void *handle[1];
  return handle;
}
API void __cudaRegisterFatBinaryEnd(void **) {}
API void __cudaUnregisterFatBinary(void **) {}
API void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
API E cudaFuncGetAttributes(cudaFuncAttributes *a, const void *) {
  memset(a, 0, sizeof *a);
  return a->maxThreadsPerBlock = 1024, a->ptxVersion = a->binaryVersion = 90, a->numRegs = 32, cudaSuccess;
}
API E cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }
API E cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *, int, size_t) { return *n = 2, cudaSuccess; }
API E cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *, int, size_t, unsigned) {
  return *n = 2, cudaSuccess;
}

// ------------------------------------------------------------------------------------------------ libcuda
// torch looks all of these up before it uses the first three.
API int cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) { return *flags = 0, *active = 1, 0; }
API int cuCtxGetCurrent(void **context) { return *context = (void *)1, 0; }
API int cuCtxSetCurrent(void *) { return 0; }
#define ABSENT(name) \
  API int name() { return fprintf(stderr, "pretended CUDA: " #name " is not there\n"), 801; }
#define EACH(_) \
  _(cuMemAddressReserve) _(cuMemRelease) _(cuMemMap) _(cuMemAddressFree) _(cuMemSetAccess) _(cuMemUnmap) \
  _(cuMemCreate) _(cuMemGetAllocationGranularity) _(cuMemExportToShareableHandle) _(cuMemImportFromShareableHandle) \
  _(cuMemsetD32Async) _(cuStreamWriteValue32) _(cuGetErrorString) _(cuMulticastAddDevice) _(cuMulticastBindMem) \
  _(cuMulticastCreate) _(cuMulticastUnbind) _(cuLogsRegisterCallback) _(cuLogsUnregisterCallback) _(cuDeviceGet) \
  _(cuMemGetAddressRange) _(cuDeviceGetAttribute) _(cuLaunchKernel) _(cuCtxFromGreenCtx) _(cuCtxPopCurrent) \
  _(cuCtxPushCurrent) _(cuGreenCtxCreate) _(cuGreenCtxDestroy) _(cuDevSmResourceSplitByCount) \
  _(cuDeviceGetDevResource) _(cuDevResourceGenerateDesc) _(cuPointerGetAttribute) _(cuMemRetainAllocationHandle) \
  _(cuMemGetAllocationPropertiesFromHandle) _(cuStreamGetGreenCtx) _(cuGreenCtxStreamCreate)
EACH(ABSENT)
