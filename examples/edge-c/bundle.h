/* An unpacked bundle: its manifest, and arrays read from its members. */
#ifndef EDGE_BUNDLE_H
#define EDGE_BUNDLE_H

#include <onnxruntime_c_api.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MOST_AXES = 8, MOST_PORTS = 32, ERROR_BYTES = 512 };

/* Every function that can fail returns false and leaves one line here. */
typedef struct {
    char text[ERROR_BYTES];
} Error;

bool fail(Error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

typedef struct {
    const char *name;
    ONNXTensorElementDataType type;
    int64_t shape[MOST_AXES];
    size_t axes;
    size_t bytes;
    void *data;
} Array;

/* Golden feeds, and what a variant gave for them where the bundle was made. */
typedef struct {
    Array inputs[MOST_PORTS];
    Array outputs[MOST_PORTS];
    size_t input_count;
    size_t output_count;
} GoldenSet;

typedef struct {
    const char *folder;
    json_t *manifest;
    json_t *variants;
    json_t *golden;
} Bundle;

typedef struct {
    const char *name;
    const char *engine;
    const char *model;
    double least_db;
    double latency_ms; /* 0: nobody measured it */
    json_t *told;
} Variant;

bool bundle_open(Bundle *bundle, const char *folder, Error *error);
void bundle_close(Bundle *bundle);
bool bundle_variant(const Bundle *bundle, size_t at, Variant *variant, Error *error);
/* Whether this processor has one of the instruction sets that the variant needs. */
bool variant_fits(const Variant *variant);
/* The file of its graph; false where that is still packed. */
bool variant_path(const Bundle *bundle, const Variant *variant, char *path, size_t size,
                  Error *error);
bool bundle_golden(const Bundle *bundle, const Variant *variant, size_t at, GoldenSet *set,
                   Error *error);
void golden_free(GoldenSet *set);
/* The file of a member; false where its name is no plain one. */
bool bundle_path(const Bundle *bundle, const char *member, char *path, size_t size, Error *error);

#endif
