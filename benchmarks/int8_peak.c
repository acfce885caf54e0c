/* The most 8-bit multiply-accumulates a second that a processor with AVX512-VNNI can do, on 1 and on 2 threads.
   No int8 engine is faster than its multiply-accumulates divided by this.

       gcc -O2 benchmarks/int8_peak.c -o int8_peak -lpthread && ./int8_peak
*/
#include <pthread.h>
#include <stdio.h>
#include <time.h>

enum { STEPS = 20000000, SUMS = 12, MACS = 64, REPEATS = 5 }; /* 12 sums hide the latency; 64 MACs an instruction */

/* Adds to each of 16 sums in register SUM four products of 8-bit numbers; their values do not matter for the time. */
#define MULTIPLY_ADD(SUM) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #SUM "\n\t"

static void *multiply(void *unused) {
    for (long step = 0; step < STEPS; step++)
        __asm__ volatile(
            MULTIPLY_ADD(0) MULTIPLY_ADD(1) MULTIPLY_ADD(2) MULTIPLY_ADD(3) MULTIPLY_ADD(4) MULTIPLY_ADD(5)
            MULTIPLY_ADD(6) MULTIPLY_ADD(7) MULTIPLY_ADD(8) MULTIPLY_ADD(9) MULTIPLY_ADD(10) MULTIPLY_ADD(11)
            ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
    return unused;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

int main(void) {
    for (int threads = 1; threads <= 2; threads++) {
        double best = 0;
        for (int repeat = 0; repeat < REPEATS; repeat++) {
            pthread_t handles[2];
            double start = seconds();
            for (int i = 0; i < threads; i++) pthread_create(&handles[i], NULL, multiply, NULL);
            for (int i = 0; i < threads; i++) pthread_join(handles[i], NULL);
            double rate = 1.0 * threads * STEPS * SUMS * MACS / (seconds() - start);
            if (rate > best) best = rate;
        }
        printf("%d thread(s): %.2f 10^12 multiply-accumulates a second, best of %d\n", threads, best / 1e12, REPEATS);
    }
    return 0;
}
