# Sets `result` to the architectures that an nvcc compiles for where none is named: code for 7.5 (Turing) to 9.0
# (Hopper), and PTX, which the driver compiles at first use, for what came after: of 9.0, which every later GPU can
# use, and of the newest generation this nvcc supports. nvcc up to 12.7 supports none after 9.0; 12.8 and 13 support 12.0.
function(gcext_cuda_archs nvcc result)
  set(archs 75-real 80-real 86-real 89-real 90)
  execute_process(COMMAND "${nvcc}" --list-gpu-arch OUTPUT_VARIABLE known RESULT_VARIABLE failed ERROR_QUIET)
  string(REGEX MATCHALL "compute_[0-9]+0\n" generations "${known}")
  list(TRANSFORM generations REPLACE "[^0-9]" "")
  list(SORT generations COMPARE NATURAL ORDER DESCENDING)
  if(NOT failed AND generations)
    list(GET generations 0 newest)
    if(newest GREATER 90)
      list(APPEND archs ${newest}-virtual)
    endif()
  endif()
  set(${result} "${archs}" PARENT_SCOPE)
endfunction()
