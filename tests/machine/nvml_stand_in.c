/* A libnvidia-ml.so.1 with one GPU, for the real binding: what it says is read from the file that NVML_STAND_IN names,
   "ENERGY_MJ MIG_MODE ERROR". MIG_MODE -1 is of a GPU that knows no MIG; any ERROR but 0 is what reading energy returns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUCCESS 0
#define UNINITIALIZED 1
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define GPU "GPU-11111111-2222-3333-4444-555555555555"

static int is_initialized, a_gpu;

static int said(unsigned long long *energy, int *mig) {
    int error = 999;
    FILE *file = fopen(getenv("NVML_STAND_IN"), "r");
    if (file == NULL || fscanf(file, "%llu %d %d", energy, mig, &error) != 3) error = 999;
    if (file != NULL) fclose(file);
    return error;
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    is_initialized = 1;
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    if (!is_initialized) return UNINITIALIZED;
    *device = &a_gpu;
    return strcmp(uuid, GPU) == 0 ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending) {
    unsigned long long energy;
    int mig = 0;
    (void)device;
    said(&energy, &mig);
    *current = *pending = mig == 1;
    return mig < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
    int mig;
    return device == &a_gpu ? said(energy, &mig) : 2;
}

const char *nvmlErrorString(int error) { return error == 15 ? "GPU is lost" : "an error"; }
