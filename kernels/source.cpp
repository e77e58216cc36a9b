// The hash of the sources that the library was built from, which hpcmcodec/native/build.py passes as HPCM_SOURCE. It
// changes with every source. It has a unit of its own, so that nothing else is compiled again for it.

extern "C" __attribute__((visibility("default"))) const char* hpcm_source() { return HPCM_SOURCE; }
