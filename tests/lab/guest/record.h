/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A disk record that tells whether it is whole, and which it is.  Hosts read it too (hosttools/verify.py).
 */
#ifndef RECORD_H
#define RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RECORD_MAGIC 0x564d4d4c41425245ull
#define RECORD_SIZE  4096

struct record {
    uint64_t magic, seq, nonce, counter;
    uint32_t crc, reserved;
    uint64_t pattern[(RECORD_SIZE - 40) / 8];
};
_Static_assert(sizeof(struct record) == RECORD_SIZE, "a record fills its slot");

static uint32_t crc32_table[256];

__attribute__((constructor)) static void crc32_fill_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        crc32_table[i] = c;
    }
}

static uint32_t crc32_of(const void *data, size_t size)
{
    const uint8_t *byte = data;
    uint32_t crc = ~0u;

    while (size--)
        crc = crc32_table[(crc ^ *byte++) & 0xff] ^ (crc >> 8);
    return ~crc;
}

static void record_fill(struct record *record, uint64_t seq, uint64_t nonce, uint64_t counter)
{
    *record = (struct record){ .magic = RECORD_MAGIC, .seq = seq, .nonce = nonce, .counter = counter };
    for (size_t i = 0; i < sizeof(record->pattern) / 8; i++)
        record->pattern[i] = seq * 0x9e3779b97f4a7c15ull;
    record->crc = crc32_of(record, sizeof(*record));
}

static bool record_valid(const struct record *record)
{
    struct record copy = *record;

    copy.crc = 0;
    return record->magic == RECORD_MAGIC && crc32_of(&copy, sizeof(copy)) == record->crc;
}

#endif
