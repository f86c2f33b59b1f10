/* One variant on ONNX Runtime's CPU provider, with one thread. */
#ifndef EDGE_SESSION_H
#define EDGE_SESSION_H

#include "bundle.h"

enum { EQUAL_DB = 300 }; /* stands for infinity */

typedef struct {
    const OrtApi *api;
    OrtEnv *env;
    OrtSession *session;
    OrtMemoryInfo *memory;
} Session;

bool session_open(Session *session, const char *path, Error *error);
void session_close(Session *session);
/* Run once; with `found_db`, compare with the recorded outputs and keep the lowest agreement. */
bool session_run(Session *session, const GoldenSet *set, double *found_db, Error *error);

#endif
