// What explain() says of each kernel of convolution, in a line.
#pragma once

namespace convnorm::conv {

inline constexpr const char* kAboutDepthwise =
    "vectors of channels (channels_last) or of columns, 7 outputs in registers over all taps";
inline constexpr const char* kAboutGrouped =
    "few channels per group: 12 pixels of packed rows by a vector of filters in registers";
inline constexpr const char* kAboutGroupedWeight =
    "few channels per group: 4 filters x 3 taps in registers over the pixels of packed rows";
inline constexpr const char* kAboutCol2im =
    "few channels: products with all taps of a window at once, added up where the window lies";
inline constexpr const char* kAboutWinograd =
    "36 products per tile of outputs: 4x4 of 3x3 windows (in place of 144), 3x3 of 4x4, 2x2 of 5x5 (100); "
    "a strided window as windows of stride 1 over its phases";
inline constexpr const char* kAboutFolded =
    "a strided window over few channels as one of stride 1 over more of them, then Winograd";
inline constexpr const char* kAbout =
    "patches packed per block, register-tiled FMA; the im2col matrix never exists";
inline constexpr const char* kAboutTiles =
    "bfloat16: products of tiles of 16 pixels, 32 channels and 16 filters, four of them in registers";
inline constexpr const char* kAboutPairs =
    "bfloat16: products of pairs of channels, 8 pixels by 32 filters in registers";
inline constexpr const char* kAboutTurned = "small images of planes, turned to channels_last and back";
inline constexpr const char* kReference =
    "patches as a matrix in memory, plain loops, double sums: the readable reference";
inline constexpr const char* kAboutCudaChannels =
    "16 bytes of channels and 4 outputs of a row per thread; filters in shared memory";
inline constexpr const char* kAboutCudaRows = "4 outputs of a row per thread; filters in shared memory";
inline constexpr const char* kAboutCudaDirect =
    "few channels per group: one element of the result per thread";
inline constexpr const char* kAboutCudaTile =
    "tiles of 64 x 64 in 4 x 4 per thread, gathered into shared memory";

}  // namespace convnorm::conv
