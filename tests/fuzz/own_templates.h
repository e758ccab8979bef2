// Included before all else for MemorySanitizer: what libstdc++ holds of templates is instantiated
// here, with the instrumentation that the library lacks.
#pragma once

#include <bits/c++config.h>
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
