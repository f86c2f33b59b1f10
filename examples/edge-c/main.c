/* Prove an unpacked bundle on this device, and time it: edge FOLDER [CALLS]
 *
 * Exit codes: 0 a variant gives here what it gave where the bundle was made; 1 none does, or the
 * bundle is damaged; 2 used wrongly. */
#define _POSIX_C_SOURCE 200809L

#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WARMUP = 10, CALLS = 200, MOST_CALLS = 1000000 };

static double now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e3 * (double)time.tv_sec + (double)time.tv_nsec / 1e6;
}

static int ascending(const void *one, const void *other)
{
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

/* Run every golden set and keep the lowest agreement. */
static bool prove(const Bundle *bundle, const Variant *variant, Session *session, double *found_db,
                  Error *error)
{
    *found_db = EQUAL_DB;
    for (size_t at = 0; at < json_array_size(bundle->golden); at++) {
        GoldenSet set;
        bool is_run = bundle_golden(bundle, variant, at, &set, error) &&
                      session_run(session, &set, found_db, error);
        golden_free(&set);
        if (!is_run)
            return false;
    }
    return true;
}

static bool time_calls(const Bundle *bundle, const Variant *variant, Session *session, long calls,
                       Error *error)
{
    GoldenSet set;
    double *taken = malloc((size_t)calls * sizeof *taken);
    bool is_run = taken ? bundle_golden(bundle, variant, 0, &set, error)
                        : (set = (GoldenSet){0}, fail(error, "no memory for %ld times", calls));
    for (int at = 0; at < WARMUP && is_run; at++)
        is_run = session_run(session, &set, NULL, error);
    for (long at = 0; at < calls && is_run; at++) {
        double begin = now_ms();
        is_run = session_run(session, &set, NULL, error);
        taken[at] = now_ms() - begin;
    }
    if (is_run) {
        qsort(taken, (size_t)calls, sizeof *taken, ascending);
        printf("%s: %.3f ms (median of %ld calls, p90 %.3f ms, 1 thread)", variant->name,
               taken[calls / 2], calls, taken[calls * 9 / 10]);
        if (variant->latency_ms > 0)
            printf(", recorded: %.3f ms", variant->latency_ms);
        printf("\n");
    }
    golden_free(&set);
    free(taken);
    return is_run;
}

/* How many calls to time; 0: that is no such number. */
static long calls_asked(const char *word)
{
    char *end;
    long calls = strtol(word, &end, 10);
    return *word && !*end && calls <= MOST_CALLS ? calls : 0;
}

/* Why a variant is not even tried; NULL: it is. */
static const char *passed_over(const Variant *variant)
{
    if (strcmp(variant->engine, "ort"))
        return "it is another engine's";
    if (!variant_fits(variant))
        return "this processor lacks the instructions that it needs";
    return NULL;
}

/* Whether a variant proves itself; if so, time it. */
static bool try_variant(const Bundle *bundle, const Variant *variant, long calls, Error *error)
{
    char path[4096];
    double found_db = 0;
    Session session = {0};
    bool is_proved = variant_path(bundle, variant, path, sizeof path, error) &&
                     session_open(&session, path, error) &&
                     prove(bundle, variant, &session, &found_db, error);
    if (is_proved && found_db < variant->least_db)
        is_proved = fail(error, "its outputs agree with the recorded ones by %.1f dB only, not %g",
                         found_db, variant->least_db);
    if (is_proved)
        printf("golden ok: %s, %.1f dB (needs %g)\n", variant->name, found_db, variant->least_db);
    is_proved = is_proved && time_calls(bundle, variant, &session, calls, error);
    session_close(&session);
    return is_proved;
}

int main(int count, char **words)
{
    Error error = {{0}};
    Bundle bundle;
    long calls = count == 3 ? calls_asked(words[2]) : CALLS;
    if (count < 2 || count > 3 || calls < 1) {
        fprintf(stderr, "usage: edge FOLDER [CALLS]; FOLDER is of `unzip model.aigc -d FOLDER`\n");
        return 2;
    }
    bool is_proved = false, is_open = bundle_open(&bundle, words[1], &error);
    for (size_t at = 0; is_open && !is_proved && at < json_array_size(bundle.variants); at++) {
        Variant variant;
        is_open = bundle_variant(&bundle, at, &variant, &error);
        const char *why = is_open ? passed_over(&variant) : NULL;
        if (!is_open)
            break;
        is_proved = !why && try_variant(&bundle, &variant, calls, &error);
        if (!is_proved)
            fprintf(stderr, "warning: %s is not used: %s\n", variant.name, why ? why : error.text);
    }
    if (!is_open)
        fprintf(stderr, "error: %s\n", error.text);
    else if (!is_proved)
        fprintf(stderr, "error: nothing in %s runs rightly here\n", words[1]);
    bundle_close(&bundle);
    return is_proved ? 0 : 1;
}
