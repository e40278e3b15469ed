/*
 * A TCG plugin that counts the instructions of a marked stretch by class, and models the data caches.
 *
 * The guest marks with getpriority(0x4544, k), a system call that fails and changes nothing. k = 0 switches
 * the memory model on; every other k writes one line of JSON with all counters so far. The guest's loading
 * of Python and the runtime is therefore not slowed down by the model.
 *
 * Instructions are told apart by their encoding: Arm Architecture Reference Manual for A-profile (DDI 0487),
 * chapter C4, A64 instruction set encoding. Those of 32-bit guests are counted in one class.
 *
 * Arguments: out=FILE, caches=BYTES:WAYS[+BYTES:WAYS...], the first level first; without caches= no model.
 */
#include "qemu_plugin.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MARK 0x4544
#define LINE 6 /* log2 of a cache line's bytes */
#define LEVELS 3

EXPORT int qemu_plugin_version = 1;

enum {
    INT, BRANCH, LOAD, STORE, LOAD_SIMD, STORE_SIMD, FMLA, DOT, MATMUL, MLA, SIMD, FLOAT, SVE, SYSTEM, OTHER,
    CLASSES
};

static const char *const names[CLASSES] = {
    "int", "branch", "load", "store", "load_simd", "store_simd", "fmla", "dot", "matmul", "mla", "simd",
    "float", "sve", "system", "other",
};

/* One translated block: how often it ran, and its instructions by class. */
typedef struct block {
    uint64_t runs;
    uint16_t count[CLASSES];
    struct block *next;
} block_t;

typedef struct {
    uint64_t sets, misses;
    unsigned ways;
    uint64_t *tags; /* per set its lines, the one used last first; 0 is empty */
} cache_t;

static block_t *blocks;
static FILE *out;
static long getpriority_number;
static bool is_a64, modelled, active;
static cache_t cache[LEVELS];
static unsigned levels;
static uint64_t bytes_read, bytes_written, accesses;

/* ---- A64 encodings */

static bool is(uint32_t word, uint32_t mask, uint32_t value) { return (word & mask) == value; }

static int class_of_memory(uint32_t w)
{
    bool simd = w >> 26 & 1, load = w >> 22 & 1;
    if (is(w, 0xbe000000, 0x0c000000)) /* LD1 to LD4, ST1 to ST4 */
        return load ? LOAD_SIMD : STORE_SIMD;
    if (is(w, 0x3b000000, 0x18000000)) /* of a literal */
        return simd ? LOAD_SIMD : LOAD;
    if (is(w, 0x3a000000, 0x28000000)) /* of pairs */
        return simd ? (load ? LOAD_SIMD : STORE_SIMD) : (load ? LOAD : STORE);
    if (is(w, 0x3a000000, 0x38000000)) { /* of one register */
        unsigned opc = w >> 22 & 3;
        if (simd)
            return opc & 1 ? LOAD_SIMD : STORE_SIMD;
        if (is(w, 0x00200c00, 0x00200000)) /* atomics */
            return LOAD;
        return opc ? LOAD : STORE;
    }
    return load ? LOAD : STORE; /* exclusive and ordered ones */
}

static int class_of_product(uint32_t w)
{
    unsigned size = w >> 22 & 3, opcode;
    bool u = w >> 29 & 1;
    if (is(w, 0xbf20fc00, 0x0e20cc00) || is(w, 0xbf60fc00, 0x0e400c00)) /* FMLA, FMLS; of float16 */
        return FMLA;
    if (is(w, 0xbf60fc00, 0x0e20ec00) || is(w, 0xbf60fc00, 0x2e20cc00)) /* FMLAL, FMLAL2, FMLSL, FMLSL2 */
        return FMLA;
    if (is(w, 0x9f20fc00, 0x0e209400) || is(w, 0xbf20fc00, 0x0e209c00)) /* MLA, MLS; MUL */
        return MLA;
    if (is(w, 0x9f208400, 0x0e008400)) { /* three registers, extension */
        opcode = w >> 11 & 15;
        if (opcode == 2 || (opcode == 3 && !u) || (opcode == 15 && u && size == 1)) /* [US]DOT, USDOT, BFDOT */
            return DOT;
        if (((opcode == 4 || opcode == 5) && size == 2) || (opcode == 13 && u && size == 1))
            return MATMUL; /* SMMLA, UMMLA, USMMLA, BFMMLA */
        return opcode == 15 && u && size == 3 ? FMLA : SIMD; /* BFMLAL */
    }
    if (is(w, 0x9f200c00, 0x0e200000)) { /* three different: [SU]MLAL, [SU]MLSL, [SU]MULL, SQDM* */
        opcode = w >> 12 & 15;
        return opcode >= 8 && opcode <= 13 ? MLA : SIMD;
    }
    if (is(w, 0x9f000400, 0x0f000000)) { /* by element */
        opcode = w >> 12 & 15;
        if (!u && (opcode == 1 || opcode == 5))
            return FMLA;
        if (size == 2 && ((!u && (opcode == 0 || opcode == 4)) || (u && (opcode == 8 || opcode == 12))))
            return FMLA; /* FMLAL and its kin */
        if (opcode == 14)
            return DOT;
        if (opcode == 15 && !u)
            return size == 3 ? FMLA : DOT; /* BFMLAL; SUDOT, USDOT, BFDOT */
        if ((opcode & 3) == 2 || (opcode & 3) == 3 || (u && (opcode == 0 || opcode == 4)) || (!u && opcode == 8))
            return opcode == 15 ? SIMD : MLA;
    }
    return SIMD;
}

static int class_of_a64(uint32_t w)
{
    unsigned group = w >> 25 & 15;
    if (group == 0)
        return w >> 31 ? SVE : OTHER;
    if (group == 2)
        return SVE;
    if ((group & 14) == 8)
        return INT; /* with an immediate */
    if ((group & 14) == 10)
        return is(w, 0xff000000, 0xd5000000) ? SYSTEM : BRANCH;
    if ((group & 5) == 4)
        return class_of_memory(w);
    if ((group & 7) == 5)
        return INT; /* of registers */
    if ((group & 7) == 7)
        return is(w, 0x5e000000, 0x1e000000) ? FLOAT : class_of_product(w);
    return OTHER;
}

/* ---- caches: write-allocate, the line used longest ago leaves */

static bool hits(cache_t *level, uint64_t line)
{
    uint64_t *tags = level->tags + line % level->sets * level->ways, tag = line + 1;
    unsigned way = 0;
    if (tags[0] == tag)
        return true;
    while (way < level->ways && tags[way] != tag)
        way++;
    bool found = way < level->ways;
    if (!found) {
        way = level->ways - 1;
        level->misses++;
    }
    memmove(tags + 1, tags, way * sizeof *tags);
    tags[0] = tag;
    return found;
}

static void on_access(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
    (void)cpu, (void)data;
    uint64_t size = 1u << qemu_plugin_mem_size_shift(info);
    if (qemu_plugin_mem_is_store(info))
        bytes_written += size;
    else
        bytes_read += size;
    for (uint64_t line = address >> LINE; line <= (address + size - 1) >> LINE; line++) {
        accesses++;
        for (unsigned level = 0; level < levels && !hits(&cache[level], line); level++)
            ;
    }
}

static bool add_caches(const char *text)
{
    while (*text) {
        char *end;
        unsigned long bytes = strtoul(text, &end, 10);
        unsigned long ways = *end == ':' ? strtoul(end + 1, &end, 10) : 0;
        cache_t *level = &cache[levels];
        if (levels == LEVELS || !ways || bytes < ways << LINE || (*end && *end != '+'))
            return false;
        level->ways = ways;
        level->sets = bytes / (ways << LINE);
        level->tags = calloc(level->sets * ways, sizeof *level->tags);
        if (!level->tags)
            return false;
        levels++;
        text = *end ? end + 1 : end;
    }
    return true;
}

/* ---- QEMU's calls */

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    block_t *block = calloc(1, sizeof *block);
    if (!block)
        abort();
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
        int class = OTHER;
        if (is_a64) {
            uint32_t word;
            memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
            class = class_of_a64(word);
        }
        block->count[class]++;
        bool touches = !is_a64 || (class >= LOAD && class <= STORE_SIMD) || class == SVE;
        if (active && touches)
            qemu_plugin_register_vcpu_mem_cb(instruction, on_access, QEMU_PLUGIN_CB_NO_REGS,
                                             QEMU_PLUGIN_MEM_RW, NULL);
    }
    block->next = blocks;
    blocks = block;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->runs, 1);
}

static void write_counters(long mark)
{
    uint64_t count[CLASSES] = {0};
    for (block_t *block = blocks; block; block = block->next)
        if (block->runs)
            for (int i = 0; i < CLASSES; i++)
                count[i] += block->runs * block->count[i];
    fprintf(out, "{\"mark\": %ld", mark);
    for (int i = 0; i < CLASSES; i++)
        fprintf(out, ", \"%s\": %" PRIu64, names[i], count[i]);
    if (modelled) {
        fprintf(out, ", \"bytes_read\": %" PRIu64 ", \"bytes_written\": %" PRIu64 ", \"accesses\": %" PRIu64,
                bytes_read, bytes_written, accesses);
        for (unsigned level = 0; level < levels; level++)
            fprintf(out, ", \"misses_%u\": %" PRIu64, level + 1, cache[level].misses);
    }
    fprintf(out, "}\n");
    fflush(out);
}

static void begin(qemu_plugin_id_t id);

static void on_syscall(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t which, uint64_t who,
                       uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)cpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != getpriority_number || which != MARK)
        return;
    if (who) {
        write_counters((long)who);
    } else if (modelled && !active) {
        active = true;
        qemu_plugin_reset(id, begin); /* everything is translated again, now with the memory's calls */
    }
}

static void begin(qemu_plugin_id_t id)
{
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int count, char **arguments)
{
    is_a64 = !strcmp(info->target_name, "aarch64");
    getpriority_number = is_a64 ? 141 : 96;
    for (int i = 0; i < count; i++) {
        if (!strncmp(arguments[i], "out=", 4)) {
            out = fopen(arguments[i] + 4, "w");
        } else if (!strncmp(arguments[i], "caches=", 7)) {
            if (!add_caches(arguments[i] + 7))
                return 1;
            modelled = levels > 0;
        }
    }
    if (!out)
        return 1;
    begin(id);
    return 0;
}
