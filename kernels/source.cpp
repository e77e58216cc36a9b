// What the library was built from, as hpcmcodec/native/build.py names it (HPCM_SOURCE). A unit of its own, since the name
// changes with every source, and nothing else has to be compiled again for that.

extern "C" __attribute__((visibility("default"))) const char* hpcm_source() { return HPCM_SOURCE; }
