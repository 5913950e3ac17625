/* ISA-L beside the codec in `codec.rs`, which compiles and asks it: a line "K M LEN MS" on standard input is answered
 * with the bytes of data (K symbols of LEN bytes) that it encodes into M parity symbols in a second, over MS
 * milliseconds. Tables are made before the clock starts. */
#include <isa-l.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SYMBOLS_MAX = 255 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

int main(void) {
    int k, m, len, ms;
    printf("ISA-L %d.%d.%d\n", ISAL_MAJOR_VERSION, ISAL_MINOR_VERSION, ISAL_PATCH_VERSION);
    fflush(stdout);
    while (scanf("%d %d %d %d", &k, &m, &len, &ms) == 4) {
        if (k < 1 || m < 1 || len < 1 || k + m > SYMBOLS_MAX) return 2;
        unsigned char *bytes = aligned_alloc(64, (((size_t)(k + m) * (size_t)len) / 64 + 1) * 64);
        unsigned char *matrix = malloc((size_t)(k + m) * (size_t)k);
        unsigned char *tables = malloc(32 * (size_t)k * (size_t)m);
        unsigned char *symbols[SYMBOLS_MAX];
        if (!bytes || !matrix || !tables) return 3;
        for (size_t i = 0; i < (size_t)k * (size_t)len; i++) bytes[i] = (unsigned char)(i * 31 + i / 251);
        for (int i = 0; i < k + m; i++) symbols[i] = bytes + (size_t)i * (size_t)len;
        gf_gen_cauchy1_matrix(matrix, k + m, k);
        ec_init_tables(k, m, matrix + k * k, tables);
        ec_encode_data(len, k, m, tables, symbols, symbols + k);
        double start = now(), end = start + ms * 1e-3, at;
        unsigned long calls = 0;
        do {
            ec_encode_data(len, k, m, tables, symbols, symbols + k);
            calls++;
            at = now();
        } while (at < end);
        printf("%.0f\n", (double)calls * k * len / (at - start));
        fflush(stdout);
        free(tables);
        free(matrix);
        free(bytes);
    }
    return 0;
}
