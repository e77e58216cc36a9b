// The entropy coder: writes and reads the streams of CompressAI's coder, which hpcmcodec/rans.py describes.
//
// kernels.cpp includes this once for all instruction sets, since vectors are of no use: each symbol needs the state
// that the one before it left. Symbols are encoded from the last to the first and decoded from the first to the last.
// The caller keeps state and position between calls, so a stream can be coded in any number of calls, and the caller
// knows how much of it is left.
//
// Unlike the kernels, these functions check their arguments: whatever indexes, tables and streams hold, no access
// leaves the arrays, and all loops end. Decoding ends where the stream does, and at an escape that no encoder writes. A
// stream whose last symbol leaves LEAST_STATE and no word is the one that encoding its symbols gives.

#include <stdint.h>

namespace rans {

const uint64_t LEAST_STATE = 1ull << 31;
enum { TOTAL_BITS = 16, GROUP_BITS = 4, LAST_GROUP = 15, MAX_GROUPS = 6 };

// Row i of cdf (n, width) has sizes[i] cumulative frequencies, from 0 to 2^16; its last entry is the escape.
struct Tables {
    int64_t n, width;
    const int32_t *cdf, *sizes, *offsets;
};

struct Row {
    const int32_t* cdf;
    int32_t escape, offset;  // the number of the last entry, and the value of the first

    uint32_t start(int32_t entry) const { return (uint32_t)cdf[entry]; }
    uint32_t frequency(int32_t entry) const { return (uint32_t)cdf[entry + 1] - (uint32_t)cdf[entry]; }
};

// Sets `row` to the table of this index; false where there is none.
inline bool row_of(const Tables& tables, int32_t index, Row* row) {
    if (index < 0 || index >= tables.n) return false;
    const int32_t size = tables.sizes[index];
    if (size < 3 || size > tables.width) return false;
    row->cdf = tables.cdf + index * tables.width;
    row->escape = size - 2;
    row->offset = tables.offsets[index];
    return true;
}

inline uint32_t get_word(const uint8_t* at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

inline void put_word(uint8_t* at, uint32_t word) {
    for (int i = 0; i < 4; ++i) at[i] = (uint8_t)(word >> 8 * i);
}

struct Writer {
    uint8_t* words;
    int64_t room;  // how many words are free, before those that have been written
    uint64_t state;

    // Encodes an entry of this start and frequency, out of a total of 2^bits. False where there is no room.
    bool put(uint32_t start, uint64_t frequency, int bits) {
        if (state >= frequency << (63 - bits)) {
            if (room < 1) return false;
            put_word(words + 4 * --room, (uint32_t)state);
            state >>= 32;
        }
        state = (state / frequency << bits) + state % frequency + start;
        return true;
    }
};

inline bool put_symbol(Writer* writer, const Row& row, int32_t symbol) {
    const int64_t value = (int64_t)symbol - row.offset;
    int32_t entry = row.escape;
    if (value >= 0 && value < row.escape) {
        entry = (int32_t)value;
    } else {
        const uint64_t rest = (uint64_t)(value < 0 ? -2 * value - 1 : 2 * (value - row.escape));
        if (rest >> GROUP_BITS * MAX_GROUPS) return false;
        int groups = 0;
        while (rest >> GROUP_BITS * groups) ++groups;
        for (int i = groups - 1; i >= 0; --i)
            if (!writer->put(rest >> GROUP_BITS * i & LAST_GROUP, 1, GROUP_BITS)) return false;
        if (!writer->put((uint32_t)groups, 1, GROUP_BITS)) return false;
    }
    const uint32_t frequency = row.frequency(entry);
    if (frequency - 1 >= 1u << TOTAL_BITS) return false;
    return writer->put(row.start(entry), frequency, TOTAL_BITS);
}

// Returns how many of the first symbols are not encoded: 0, or more where an index names no table, a frequency is 0, a
// value is too far outside its table, or there is no room. State and room are then as they were before that symbol.
inline int64_t encode(int64_t n, const int32_t* symbols, const int32_t* indexes, const Tables& tables, uint64_t* state,
                      uint8_t* words, int64_t* room) {
    Writer writer = {words, *room, *state};
    for (int64_t i = n; i > 0; --i) {
        Row row;
        if (!row_of(tables, indexes[i - 1], &row) || !put_symbol(&writer, row, symbols[i - 1])) return i;
        *state = writer.state;
        *room = writer.room;
    }
    return 0;
}

struct Reader {
    const uint8_t* stream;
    int64_t n_words, position;
    uint64_t state;

    // Beyond the end zeros enter the state, and `position` says so.
    void advance(uint64_t to) {
        state = to;
        if (state < LEAST_STATE) {
            state = state << 32 | (position >= 0 && position < n_words ? get_word(stream + 4 * position) : 0);
            ++position;
        }
    }

    uint32_t group() {
        const uint32_t value = state & LAST_GROUP;
        advance(state >> GROUP_BITS);
        return value;
    }

    // Sets `all` to the number that an escape's groups stand for; false where these are not the fewest, or too many.
    bool rest(uint32_t* all) {
        const uint32_t groups = group();
        if (groups > MAX_GROUPS) return false;
        uint32_t last = 1;
        *all = 0;
        for (uint32_t i = 0; i < groups; ++i) *all |= (last = group()) << GROUP_BITS * i;
        return last != 0;
    }
};

// The entry with cdf[entry] <= place < cdf[entry + 1]. The search starts at the value 0, which is likely, moves away in
// strides that double, and ends by bisection. In a table that does not rise, the result may be any entry.
inline int32_t entry_of(const Row& row, int32_t place) {
    const int32_t end = row.escape + 1;
    int32_t low = row.offset >= 0 ? 0 : row.offset < -row.escape ? row.escape : -row.offset, high = low + 1;
    if (row.cdf[low] <= place) {
        for (int32_t step = 1; high < end && row.cdf[high] <= place; step *= 2) {
            low = high;
            high = end - high < step ? end : high + step;
        }
    } else {
        high = low;
        low = low > 0 ? low - 1 : 0;
        for (int32_t step = 1; low > 0 && row.cdf[low] > place; step *= 2) {
            high = low;
            low = low < step ? 0 : low - step;
        }
    }
    while (high - low > 1) {
        const int32_t middle = low + (high - low) / 2;
        (row.cdf[middle] <= place ? low : high) = middle;
    }
    return low;
}

// Returns how many symbols were decoded: n, or fewer where an index names no table, a table has no entry for the state,
// an escape is not as an encoder writes it, or the stream has ended. `position` counts the words that were read; it is
// beyond n_words where the stream has ended.
inline int64_t decode(int64_t n, const int32_t* indexes, const Tables& tables, const uint8_t* stream, int64_t n_words,
                      uint64_t* state, int64_t* position, int32_t* symbols) {
    Reader reader = {stream, n_words, *position, *state};
    int64_t i = 0;
    for (; i < n; ++i) {
        Row row;
        if (!row_of(tables, indexes[i], &row)) break;
        const uint32_t place = reader.state & ((1u << TOTAL_BITS) - 1);
        const int32_t entry = entry_of(row, (int32_t)place);
        const uint32_t start = row.start(entry), frequency = row.frequency(entry);
        if (place < start || place - start >= frequency || frequency > 1u << TOTAL_BITS) break;
        reader.advance(frequency * (reader.state >> TOTAL_BITS) + (place - start));
        int64_t value = entry;
        if (entry == row.escape) {
            uint32_t rest;
            if (!reader.rest(&rest)) break;
            value = rest & 1 ? -(int64_t)(rest >> 1) - 1 : (int64_t)(rest >> 1) + row.escape;
        }
        if (reader.position > n_words) break;
        symbols[i] = (int32_t)(value + row.offset);
    }
    *state = reader.state;
    *position = reader.position;
    return i;
}

}  // namespace rans
