// GCEXT_HD: a function of both floors, CPU and CUDA.
#pragma once

#if defined(__CUDACC__)
#define GCEXT_HD __host__ __device__
#else
#define GCEXT_HD
#endif
