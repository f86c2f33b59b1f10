#include "bundle.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "golden vectors are little-endian, and are read as they stand"
#endif

static const char *SCHEMA = "aigc-compress/bundle/1";
enum { MOST_BYTES = INT32_MAX };

static const struct {
    const char *name;
    ONNXTensorElementDataType type;
    size_t bytes;
} TYPES[] = {
    {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},
    {"float64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},
    {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1},
    {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
    {"int16", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16, 2},
    {"uint16", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16, 2},
    {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},
    {"uint32", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, 4},
    {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},
    {"uint64", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64, 8},
    {"bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1},
};

bool fail(Error *error, const char *format, ...)
{
    va_list told;
    va_start(told, format);
    vsnprintf(error->text, sizeof error->text, format, told);
    va_end(told);
    /* Names come from the bundle: none may steer the terminal. */
    for (char *each = error->text; *each; each++)
        *each = iscntrl((unsigned char)*each) ? '?' : *each;
    return false;
}

static bool is_plain(const char *name)
{
    static const char *PLAIN =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/";
    return name[0] && name[0] != '/' && name[0] != '.' && !strstr(name, "/.") &&
           strspn(name, PLAIN) == strlen(name);
}

bool bundle_path(const Bundle *bundle, const char *member, char *path, size_t size, Error *error)
{
    if (!is_plain(member))
        return fail(error, "the manifest names a member '%.80s', which is no plain name", member);
    int written = snprintf(path, size, "%s/%s", bundle->folder, member);
    if (written < 0 || (size_t)written >= size)
        return fail(error, "the path of %.80s is too long", member);
    return true;
}

bool bundle_open(Bundle *bundle, const char *folder, Error *error)
{
    char path[4096];
    json_error_t damage;
    *bundle = (Bundle){.folder = folder};
    if (!bundle_path(bundle, "manifest.json", path, sizeof path, error))
        return false;
    bundle->manifest = json_load_file(path, JSON_REJECT_DUPLICATES, &damage);
    if (!bundle->manifest)
        return fail(error, "%.300s, line %d: %s", path, damage.line, damage.text);
    const char *schema = json_string_value(json_object_get(bundle->manifest, "schema"));
    if (!schema || strcmp(schema, SCHEMA))
        return fail(error, "%.400s is no manifest of the format %s", path, SCHEMA);
    bundle->variants = json_object_get(bundle->manifest, "variants");
    bundle->golden = json_object_get(bundle->manifest, "golden");
    if (!json_array_size(bundle->variants) || !json_array_size(bundle->golden))
        return fail(error, "%.400s has no variants, or no golden vectors", path);
    return true;
}

void bundle_close(Bundle *bundle)
{
    json_decref(bundle->manifest);
    bundle->manifest = NULL;
}

bool bundle_variant(const Bundle *bundle, size_t at, Variant *variant, Error *error)
{
    json_t *told = json_array_get(bundle->variants, at);
    json_t *least = json_object_get(told, "least_db");
    *variant = (Variant){
        .name = json_string_value(json_object_get(told, "name")),
        .engine = json_string_value(json_object_get(told, "engine")),
        .model = json_string_value(json_object_get(told, "model")),
        .least_db = json_number_value(least),
        .latency_ms = json_number_value(json_object_get(told, "latency_ms")),
        .told = told,
    };
    if (!variant->name || !variant->engine || !variant->model || !json_is_number(least) ||
        !is_plain(variant->name))
        return fail(error, "variant %zu of the manifest is malformed", at);
    return true;
}

bool variant_path(const Bundle *bundle, const Variant *variant, char *path, size_t size,
                  Error *error)
{
    if (!bundle_path(bundle, variant->model, path, size, error))
        return false;
    char *packed = strrchr(path, '.');
    if (!packed || strcmp(packed, ".xz"))
        return true;
    *packed = '\0';
    FILE *unpacked = fopen(path, "rb");
    if (!unpacked)
        return fail(error, "it is packed: unpack it first with `xz -dk %.400s.xz`", path);
    fclose(unpacked);
    return true;
}

#if defined(__x86_64__)
/* By cpuid, since older compilers do not know this one's name; AVX2 tells that the system is ready
 * for such registers. */
static bool has_avx_vnni(void)
{
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
           (a >> 4 & 1);
}
#endif

static bool has_instructions(const char *name)
{
#if defined(__x86_64__)
    if (!strcmp(name, "avx512_vnni"))
        return __builtin_cpu_supports("avx512vnni");
    if (!strcmp(name, "avx_vnni"))
        return has_avx_vnni();
#endif
    (void)name;
    return false;
}

bool variant_fits(const Variant *variant)
{
#if defined(__x86_64__)
    json_t *asked = json_object_get(json_object_get(variant->told, "needs"), "x86_64");
#elif defined(__aarch64__)
    json_t *asked = json_object_get(json_object_get(variant->told, "needs"), "aarch64");
#else
    json_t *asked = NULL;
#endif
    size_t at;
    json_t *name;
    json_array_foreach(asked, at, name)
    {
        if (json_is_string(name) && has_instructions(json_string_value(name)))
            return true;
    }
    return json_array_size(asked) == 0;
}

static bool read_shape(Array *array, json_t *shape, size_t element, Error *error)
{
    size_t at;
    json_t *axis;
    array->axes = json_array_size(shape);
    array->bytes = element;
    if (!json_is_array(shape) || array->axes > MOST_AXES)
        return fail(error, "the shape of %.80s is malformed", array->name);
    json_array_foreach(shape, at, axis)
    {
        json_int_t length = json_integer_value(axis);
        if (!json_is_integer(axis) || length < 0)
            return fail(error, "the shape of %.80s is malformed", array->name);
        if (length > MOST_BYTES || (length && array->bytes > MOST_BYTES / (size_t)length))
            return fail(error, "%.80s is larger than a bundle can be", array->name);
        array->shape[at] = length;
        array->bytes *= (size_t)length;
    }
    return true;
}

/* The size is compared first: a manifest that lies costs no memory. */
static bool is_of_size(FILE *file, size_t bytes)
{
    return !fseek(file, 0, SEEK_END) && ftell(file) == (long)bytes && !fseek(file, 0, SEEK_SET);
}

static bool read_content(Array *array, const char *path, Error *error)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return fail(error, "%.400s: %s", path, strerror(errno));
    bool is_whole = is_of_size(file, array->bytes);
    array->data = is_whole ? malloc(array->bytes + 1) : NULL; /* an array may be empty */
    is_whole = array->data && fread(array->data, 1, array->bytes, file) == array->bytes;
    fclose(file);
    return is_whole || fail(error, "%.300s does not hold the %zu bytes of %.80s", path,
                            array->bytes, array->name);
}

static bool read_array(const Bundle *bundle, Array *array, json_t *port, json_t *stored,
                       Error *error)
{
    char path[4096];
    const char *type = json_string_value(json_object_get(port, "dtype"));
    const char *member = json_string_value(json_object_get(stored, "member"));
    array->name = json_string_value(json_object_get(port, "name"));
    if (!array->name || !type || !member)
        return fail(error, "an input or output of the manifest is malformed");
    size_t at = 0, count = sizeof TYPES / sizeof *TYPES;
    while (at < count && strcmp(TYPES[at].name, type))
        at++;
    if (at == count)
        return fail(error, "this program does not read arrays of %.40s", type);
    array->type = TYPES[at].type;
    return read_shape(array, json_object_get(stored, "shape"), TYPES[at].bytes, error) &&
           bundle_path(bundle, member, path, sizeof path, error) &&
           read_content(array, path, error);
}

static bool read_arrays(const Bundle *bundle, Array *arrays, size_t *count, json_t *ports,
                        json_t *stored, Error *error)
{
    size_t wanted = json_array_size(ports);
    if (!wanted || wanted > MOST_PORTS || wanted != json_array_size(stored))
        return fail(error, "a golden set does not fit the inputs and outputs");
    for (*count = 0; *count < wanted; ++*count) {
        json_t *port = json_array_get(ports, *count), *held = json_array_get(stored, *count);
        if (!read_array(bundle, &arrays[*count], port, held, error)) {
            ++*count; /* its data, if any, is freed with the others */
            return false;
        }
    }
    return true;
}

/* The variant's own ports, or those of the bundle. */
static json_t *ports_of(const Bundle *bundle, const Variant *variant, const char *side)
{
    json_t *own = json_object_get(variant->told, side);
    return json_is_array(own) ? own : json_object_get(bundle->manifest, side);
}

bool bundle_golden(const Bundle *bundle, const Variant *variant, size_t at, GoldenSet *set,
                   Error *error)
{
    json_t *golden = json_array_get(bundle->golden, at);
    json_t *own = json_object_get(json_object_get(golden, "own_inputs"), variant->name);
    json_t *inputs = own ? own : json_object_get(golden, "inputs");
    json_t *outputs = json_object_get(json_object_get(golden, "outputs"), variant->name);
    *set = (GoldenSet){0};
    return read_arrays(bundle, set->inputs, &set->input_count,
                       ports_of(bundle, variant, "inputs"), inputs, error) &&
           read_arrays(bundle, set->outputs, &set->output_count,
                       ports_of(bundle, variant, "outputs"), outputs, error);
}

void golden_free(GoldenSet *set)
{
    for (size_t at = 0; at < set->input_count; at++)
        free(set->inputs[at].data);
    for (size_t at = 0; at < set->output_count; at++)
        free(set->outputs[at].data);
    *set = (GoldenSet){0};
}
