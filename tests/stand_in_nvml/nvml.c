/* Plays NVIDIA's driver library. Its state is the text file named by STAND_IN_NVML, read anew at every call:
 *   init CODE                                  what nvmlInitWithFlags returns
 *   hang                                       every call waits for as long as this line is there
 *   gpu UUID TOTAL USED ERROR MIG NAME...      one a line, counted from 0; ERROR is returned for all but its handle
 *   proc GPU PID BYTES                         BYTES -1: not available
 * OLD_DRIVER leaves out what came after R418, ANCIENT_DRIVER also the entry that the binding begins with. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };
enum { MOST_GPUS = 16, MOST_PROCESSES = 256 };

struct gpu {
    char uuid[96], name[96];
    unsigned long long total, used;
    int error, mig;
};
struct process {
    unsigned gpu, pid;
    long long bytes;
};
struct state {
    int init, hang;
    unsigned gpus, processes;
    struct gpu gpu[MOST_GPUS];
    struct process process[MOST_PROCESSES];
};
struct listed {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
};

static void read_once(struct state *state) {
    memset(state, 0, sizeof *state);
    const char *path = getenv("STAND_IN_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return;
    char line[512];
    while (fgets(line, sizeof line, file)) {
        struct gpu *gpu = &state->gpu[state->gpus];
        struct process *process = &state->process[state->processes];
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "init %d", &state->init) == 1) continue;
        if (!strcmp(line, "hang")) state->hang = 1;
        if (state->gpus < MOST_GPUS && sscanf(line, "gpu %95s %llu %llu %d %d %95[^\n]", gpu->uuid, &gpu->total,
                                              &gpu->used, &gpu->error, &gpu->mig, gpu->name) == 6)
            state->gpus++;
        if (state->processes < MOST_PROCESSES &&
            sscanf(line, "proc %u %u %lld", &process->gpu, &process->pid, &process->bytes) == 3)
            state->processes++;
    }
    fclose(file);
}

static void read_state(struct state *state) {
    const struct timespec moment = {0, 5000000};
    for (read_once(state); state->hang; read_once(state)) nanosleep(&moment, NULL);
}

/* A handle is the number of the device plus one. */
static int find(struct state *state, void *handle, struct gpu **gpu) {
    read_state(state);
    size_t index = (size_t)handle - 1;
    if (index >= state->gpus) return INVALID_ARGUMENT;
    *gpu = &state->gpu[index];
    return (*gpu)->error;
}

static int copy(char *to, unsigned length, const char *text) {
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

#ifndef ANCIENT_DRIVER
int nvmlInitWithFlags(unsigned flags) {
    struct state state;
    (void)flags;
    read_state(&state);
    return state.init;
}
#endif

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct state state;
    read_state(&state);
    *count = state.gpus;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    struct state state;
    read_state(&state);
    *handle = (void *)((size_t)index + 1);
    return index < state.gpus ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    struct state state;
    struct gpu *gpu;
    int error = find(&state, handle, &gpu);
    return error ? error : copy(name, length, gpu->name);
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    struct state state;
    struct gpu *gpu;
    int error = find(&state, handle, &gpu);
    return error ? error : copy(uuid, length, gpu->uuid);
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long memory[3]) {
    struct state state;
    struct gpu *gpu;
    int error = find(&state, handle, &gpu);
    if (error) return error;
    memory[0] = gpu->total;
    memory[1] = gpu->total - gpu->used;
    memory[2] = gpu->used;
    return SUCCESS;
}

static int list(void *handle, unsigned *room, struct listed *listed) {
    struct state state;
    struct gpu *gpu;
    int error = find(&state, handle, &gpu);
    if (error) return error;
    unsigned found = 0;
    for (unsigned i = 0; i < state.processes; i++) {
        if (state.process[i].gpu + 1 != (size_t)handle) continue;
        if (listed && found < *room) {
            memset(&listed[found], 0, sizeof *listed);
            listed[found].pid = state.process[i].pid;
            listed[found].bytes = (unsigned long long)state.process[i].bytes;
        }
        found++;
    }
    int fits = found <= *room;
    *room = found;
    return fits ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *room, struct listed *listed) {
    return list(handle, room, listed);
}

#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *room, struct listed *listed) {
    return list(handle, room, listed);
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    struct state state;
    struct gpu *gpu;
    int error = find(&state, handle, &gpu);
    if (error) return error;
    *current = *pending = gpu->mig > 0;
    return gpu->mig < 0 ? NOT_SUPPORTED : SUCCESS;
}
#endif
