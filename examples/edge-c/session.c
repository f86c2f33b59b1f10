#include "session.h"

#include <math.h>
#include <string.h>

static bool is_good(const OrtApi *api, OrtStatus *status, Error *error)
{
    if (!status)
        return true;
    fail(error, "ONNX Runtime: %.400s", api->GetErrorMessage(status));
    api->ReleaseStatus(status);
    return false;
}

bool session_open(Session *session, const char *path, Error *error)
{
    const OrtApi *api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    OrtSessionOptions *options = NULL;
    *session = (Session){.api = api};
    if (!api)
        return fail(error, "this ONNX Runtime, %s, is older than the header it was built with",
                    OrtGetApiBase()->GetVersionString());
    bool is_open =
        is_good(api, api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "edge", &session->env), error) &&
        is_good(api, api->CreateSessionOptions(&options), error) &&
        is_good(api, api->SetIntraOpNumThreads(options, 1), error) &&
        is_good(api, api->CreateSession(session->env, path, options, &session->session), error) &&
        is_good(api, api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault,
                                              &session->memory), error);
    if (options)
        api->ReleaseSessionOptions(options);
    return is_open;
}

void session_close(Session *session)
{
    if (session->memory)
        session->api->ReleaseMemoryInfo(session->memory);
    if (session->session)
        session->api->ReleaseSession(session->session);
    if (session->env)
        session->api->ReleaseEnv(session->env);
    *session = (Session){0};
}

static double element(const void *data, ONNXTensorElementDataType type, size_t at)
{
    switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return ((const float *)data)[at];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return ((const double *)data)[at];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8: return ((const int8_t *)data)[at];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16: return ((const int16_t *)data)[at];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16: return ((const uint16_t *)data)[at];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return ((const int32_t *)data)[at];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32: return ((const uint32_t *)data)[at];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return (double)((const int64_t *)data)[at];
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64: return (double)((const uint64_t *)data)[at];
    default: return ((const uint8_t *)data)[at];
    }
}

static double agreement_db(const Array *recorded, const void *found, size_t count)
{
    double power = 0, noise = 0;
    for (size_t at = 0; at < count; at++) {
        double wanted = element(recorded->data, recorded->type, at);
        double got = element(found, recorded->type, at);
        if (!isfinite(wanted) && !isfinite(got))
            continue;
        power += wanted * wanted;
        noise += (wanted - got) * (wanted - got);
    }
    if (noise == 0)
        return EQUAL_DB;
    return power > 0 && isfinite(noise) ? 10 * log10(power / noise) : -EQUAL_DB;
}

/* Compare one output with what was recorded: its type, its shape, its elements. */
static bool compare(Session *session, const Array *recorded, OrtValue *value, double *found_db,
                    Error *error)
{
    const OrtApi *api = session->api;
    OrtTensorTypeAndShapeInfo *info = NULL;
    ONNXTensorElementDataType type;
    size_t axes = 0, count = 0;
    int64_t shape[MOST_AXES] = {0};
    void *data = NULL;
    bool is_read = is_good(api, api->GetTensorTypeAndShape(value, &info), error) &&
                   is_good(api, api->GetTensorElementType(info, &type), error) &&
                   is_good(api, api->GetDimensionsCount(info, &axes), error) &&
                   (axes <= MOST_AXES || fail(error, "%.80s has too many axes", recorded->name)) &&
                   is_good(api, api->GetDimensions(info, shape, axes), error) &&
                   is_good(api, api->GetTensorShapeElementCount(info, &count), error) &&
                   is_good(api, api->GetTensorMutableData(value, &data), error);
    if (info)
        api->ReleaseTensorTypeAndShapeInfo(info);
    if (!is_read)
        return false;
    bool is_alike = type == recorded->type && axes == recorded->axes &&
                    !memcmp(shape, recorded->shape, axes * sizeof *shape);
    double db = is_alike ? agreement_db(recorded, data, count) : -EQUAL_DB;
    if (db < *found_db)
        *found_db = db;
    return true;
}

bool session_run(Session *session, const GoldenSet *set, double *found_db, Error *error)
{
    const OrtApi *api = session->api;
    const char *inputs[MOST_PORTS], *outputs[MOST_PORTS];
    OrtValue *fed[MOST_PORTS] = {0}, *given[MOST_PORTS] = {0};
    bool is_done = true;
    for (size_t at = 0; at < set->input_count && is_done; at++) {
        const Array *each = &set->inputs[at];
        inputs[at] = each->name;
        is_done = is_good(api, api->CreateTensorWithDataAsOrtValue(
                                   session->memory, each->data, each->bytes, each->shape,
                                   each->axes, each->type, &fed[at]), error);
    }
    for (size_t at = 0; at < set->output_count; at++)
        outputs[at] = set->outputs[at].name;
    is_done = is_done && is_good(api, api->Run(session->session, NULL, inputs,
                                               (const OrtValue *const *)fed, set->input_count,
                                               outputs, set->output_count, given), error);
    for (size_t at = 0; at < set->output_count && is_done && found_db; at++)
        is_done = compare(session, &set->outputs[at], given[at], found_db, error);
    for (size_t at = 0; at < MOST_PORTS; at++) {
        if (fed[at])
            api->ReleaseValue(fed[at]);
        if (given[at])
            api->ReleaseValue(given[at]);
    }
    return is_done;
}
