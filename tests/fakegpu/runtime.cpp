// A CUDA runtime without a GPU, for tests: preloaded before libcudart, it lets a CUDA build of
// torch believe in one device.
//
//   1. Device memory and pinned memory are the host's, filled with a pattern when handed out.
//   2. A stream is a queue, and runs as late as it may: when somebody waits for it, or for an event
//      behind it. So whoever reads on the host without waiting reads the pattern, and two streams
//      that nothing orders run in the order of who is waited for.
//   3. A copy from pageable memory takes the bytes at the call, one to pageable memory waits, as
//      on a device; pinned memory is read and written when the queue runs.
//   4. Capture records the queue's entries; a replay queues them again.
//   5. gcext's kernels come here as closures over tests/emu/cuemu.h (fakegpu_enqueue). Kernels of
//      torch cannot run: plugin.py keeps torch from launching any, and one that comes is an error.
//
// What is not here is not called by torch 2.11 on the way of the tests, and fails when it is.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

using Work = std::function<void()>;

struct Graph {
  std::vector<Work> work;
};

struct Stream {
  std::deque<Work> queue;
  uint64_t issued = 0, done = 0;
  Graph* captured = nullptr;
};

struct Event {
  Stream* stream = nullptr;
  uint64_t ticket = 0;
};

using Memory = std::map<const char*, size_t>;

std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;
Stream default_stream;
std::vector<Stream*> streams{&default_stream};
Memory device, pinned;
std::map<const void*, std::string> kernels;
cudaError_t last_error = cudaSuccess;

Stream* of(cudaStream_t stream) {
  const bool none =
      stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
  return none ? &default_stream : reinterpret_cast<Stream*>(stream);
}

Event* of(cudaEvent_t event) { return reinterpret_cast<Event*>(event); }

cudaError_t fail(cudaError_t error) { return last_error = error; }

void run_until(Stream* stream, uint64_t ticket) {
  while (stream->done < ticket) {
    const Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    work();
    ++stream->done;
  }
}

void run(Stream* stream) { run_until(stream, stream->issued); }

// The default stream last: what it has not done yet is what others might spoil.
void run_all() {
  for (size_t i = streams.size(); i-- > 0;) run(streams[i]);
}

cudaError_t enqueue(Stream* stream, Work work) {
  if (stream->captured != nullptr) {
    stream->captured->work.push_back(std::move(work));
  } else {
    stream->queue.push_back(std::move(work));
    ++stream->issued;
  }
  return cudaSuccess;
}

cudaError_t take(Memory* memory, void** p, size_t bytes, int pattern) {
  const Lock lock(mutex);
  *p = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  if (*p == nullptr) return fail(cudaErrorMemoryAllocation);
  std::memset(*p, pattern, bytes);
  (*memory)[static_cast<char*>(*p)] = bytes;
  return cudaSuccess;
}

cudaError_t give(Memory* memory, void* p) {
  const Lock lock(mutex);
  run_all();
  memory->erase(static_cast<char*>(p));
  std::free(p);
  return cudaSuccess;
}

bool within(const Memory& memory, const void* p) {
  const char* at = static_cast<const char*>(p);
  auto found = memory.upper_bound(at);
  return found != memory.begin() && (--found, at < found->first + found->second);
}

bool pageable(const void* p) { return !within(device, p) && !within(pinned, p); }

cudaError_t new_stream(cudaStream_t* stream) {
  const Lock lock(mutex);
  streams.push_back(new Stream);
  *stream = reinterpret_cast<cudaStream_t>(streams.back());
  return cudaSuccess;
}

cudaError_t new_event(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

cudaError_t launch(const void* function) {
  const auto found = kernels.find(function);
  const std::string name = found == kernels.end() ? "?" : found->second;
  if (name.find("spin_kernel") != std::string::npos) return cudaSuccess;  // torch.cuda._sleep
  std::fprintf(stderr, "fakegpu: torch launched %s\n", name.c_str());
  return fail(cudaErrorNotSupported);
}

}  // namespace

// --- For plugin.py and the kernels. ---
API void fakegpu_enqueue(void* stream, const std::function<void()>* work) {
  const Lock lock(mutex);
  enqueue(of(static_cast<cudaStream_t>(stream)), *work);
}
API void fakegpu_call(void* stream, void (*function)()) {
  const Lock lock(mutex);
  enqueue(of(static_cast<cudaStream_t>(stream)), function);
}
API void fakegpu_run(void* stream) {
  const Lock lock(mutex);
  run(of(static_cast<cudaStream_t>(stream)));
}
API int fakegpu_capturing(void* stream) {
  return of(static_cast<cudaStream_t>(stream))->captured != nullptr;
}

// --- The device. ---
API cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
API cudaError_t cudaGetDevice(int* current) { return *current = 0, cudaSuccess; }
API cudaError_t cudaSetDevice(int) { return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = 0, cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = 0, *greatest = -5, cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
API cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  return *available = size_t{12} << 30, *total = size_t{16} << 30, cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {};
  std::strcpy(p->name, "no GPU");
  p->major = 9;
  p->totalGlobalMem = size_t{16} << 30;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->sharedMemPerBlock = 48 << 10;
  return cudaSuccess;
}

// --- Memory. ---
API cudaError_t cudaMalloc(void** p, size_t bytes) { return take(&device, p, bytes, 0xa5); }
API cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  return take(&pinned, p, bytes, 0x5a);
}
API cudaError_t cudaFree(void* p) { return give(&device, p); }
API cudaError_t cudaFreeHost(void* p) { return give(&pinned, p); }
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  const Lock lock(mutex);
  *attributes = {};
  attributes->type = within(device, p)   ? cudaMemoryTypeDevice
                     : within(pinned, p) ? cudaMemoryTypeHost
                                         : cudaMemoryTypeUnregistered;
  attributes->devicePointer = attributes->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                cudaStream_t stream) {
  const Lock lock(mutex);
  Stream* const queue = of(stream);
  if (queue->captured != nullptr && (pageable(to) || pageable(from)))
    return fail(cudaErrorStreamCaptureUnsupported);
  if (pageable(from)) {
    const char* first = static_cast<const char*>(from);
    const std::vector<char> taken(first, first + bytes);
    enqueue(queue, [=] { std::memcpy(to, taken.data(), bytes); });
  } else {
    enqueue(queue, [=] { std::memcpy(to, from, bytes); });
  }
  if (pageable(to)) run(queue);
  return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const Lock lock(mutex);
  return enqueue(of(stream), [=] { std::memset(to, value, bytes); });
}

// --- Streams and events. ---
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  return new_stream(stream);
}
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  return *priority = 0, cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(mutex);
  if (of(stream)->captured != nullptr) return fail(cudaErrorStreamCaptureUnsupported);
  return run(of(stream)), cudaSuccess;
}
API cudaError_t cudaDeviceSynchronize() {
  const Lock lock(mutex);
  return run_all(), cudaSuccess;
}
API cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const Lock lock(mutex);
  return of(stream)->done == of(stream)->issued ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Lock lock(mutex);
  const Event now = *of(event);
  if (now.stream == nullptr) return cudaSuccess;
  return enqueue(of(stream), [now] { run_until(now.stream, now.ticket); });
}
API cudaError_t cudaEventCreate(cudaEvent_t* event) { return new_event(event); }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return new_event(event); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete of(event), cudaSuccess; }
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(mutex);
  *of(event) = {of(stream), of(stream)->issued};
  return cudaSuccess;
}
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
API cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(mutex);
  const Event& now = *of(event);
  return now.stream == nullptr || now.stream->done >= now.ticket ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(mutex);
  if (of(event)->stream != nullptr) run_until(of(event)->stream, of(event)->ticket);
  return cudaSuccess;
}

// --- Graphs. ---
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status =
      of(stream)->captured != nullptr ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                         unsigned long long* id, cudaGraph_t* graph,
                                         const cudaGraphNode_t** nodes,
                                         const cudaGraphEdgeData** edges, size_t* count) {
  Graph* const captured = of(stream)->captured;
  if (id != nullptr) *id = reinterpret_cast<unsigned long long>(captured);
  if (graph != nullptr) *graph = reinterpret_cast<cudaGraph_t>(captured);
  if (nodes != nullptr) *nodes = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (count != nullptr) *count = 0;
  return cudaStreamIsCapturing(stream, status);
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(mutex);
  run(of(stream));
  of(stream)->captured = new Graph;
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(mutex);
  *graph = reinterpret_cast<cudaGraph_t>(std::exchange(of(stream)->captured, nullptr));
  return cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  return *count = reinterpret_cast<Graph*>(graph)->work.size(), cudaSuccess;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph,
                                              unsigned long long) {
  return *exec = reinterpret_cast<cudaGraphExec_t>(graph), cudaSuccess;
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const Lock lock(mutex);
  for (const Work& work : reinterpret_cast<Graph*>(exec)->work) enqueue(of(stream), work);
  return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }  // its exec is the same
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }

// --- Errors. ---
API cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
API cudaError_t cudaPeekAtLastError() { return last_error; }
API const char* cudaGetErrorString(cudaError_t) { return "no GPU can do this (fakegpu)"; }
API const char* cudaGetErrorName(cudaError_t) { return "fakegpu"; }

// --- What nvcc's code calls when a library is loaded, and for every launch. ---
API void** __cudaRegisterFatBinary(void*) {
  static void* handle[4];
  return handle;
}
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API char __cudaInitModule(void**) { return 1; }
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*,
                                uint3*, dim3*, dim3*, int*) {
  kernels[host] = name;
}
API unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, cudaStream_t) { return 0; }
API cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  return *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function)), cudaSuccess;
}
API cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t) {
  return launch(function);
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  return launch(kernel);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* function, void**) {
  return launch(function);
}
